"""The contract of an engine: it owns the optimizer, the device and the ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from specdec_core.algorithm.base import Metric, StepOutput, TrainedAlgorithm, decay_groups
from specdec_core.algorithm.draft import Draft
from specdec_core.capture.features import Features
from specdec_core.config.run import TrainSection
from specdec_core.data.batch import Batch
from specdec_core.errors import UserError
from specdec_core.target.base import Target

GROUP_KEYS = frozenset({"params", "lr", "betas", "eps", "weight_decay", "lr_scale", "starts_at"})


class StepModule(nn.Module):
    """The step as one `forward`, so that an engine's hooks on modules fire.

    With a target that is trained, this is the root module of both, and the step captures its features itself.
    """

    def __init__(
        self, algorithm: TrainedAlgorithm, draft: Draft, target: Target, target_module: nn.Module | None = None
    ) -> None:
        """`target_module` holds the target's weights if they are trained, and is made trainable; else it is None."""
        super().__init__()
        self.draft = draft
        self.target_module = target_module
        self.algorithm = algorithm
        self.target = target
        if target_module is not None:
            target_module.requires_grad_()
            self.plan = algorithm.capture_plan(target.facts)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """The algorithm's groups, the target's among them if it is trained; see `Algorithm.parameter_groups`."""
        groups = self.algorithm.parameter_groups(self.draft, weight_decay)
        if self.target_module is not None:
            settings = {"weight_decay": weight_decay, **(self.algorithm.target_group() or {})}
            groups = [*groups, *decay_groups(self.target_module.parameters(), **settings)]
        if unknown := {key for group in groups for key in group} - GROUP_KEYS:
            raise ValueError(f"a parameter group has no key {min(unknown)!r}; allowed: {', '.join(sorted(GROUP_KEYS))}")
        return groups

    def denominator(self, batch: Batch, features: Features) -> Tensor:
        """[K] this micro-batch's share of the denominators."""
        return self.algorithm.denominator(self.draft, batch, features)

    def forward(self, batch: Batch, features: Features, denominator: Tensor) -> StepOutput:
        """One micro-batch's loss and metrics. `features` are empty if they are captured here."""
        if self.target_module is not None:
            features = self.target.capture(batch, self.plan)
        return self.algorithm.training_step(self.draft, batch, features, self.target, denominator)


@dataclass(frozen=True)
class StepResult:
    """One optimizer step: `metrics` summed over the window and all ranks, "loss" included."""

    metrics: Mapping[str, Metric]
    lr: float
    grad_norm: float


@dataclass(frozen=True)
class EngineState:
    """Optimizer and scheduler, ready for safetensors and JSON."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


class NonFinite(UserError):
    """The loss or the gradient is not a finite number; no weight was changed by it."""


class Engine(ABC):
    """Made with the plugin's validated options."""

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def start(self) -> None:
        """Choose the device and join the process group, if there is one."""

    @abstractmethod
    def prepare(self, step: StepModule, train: TrainSection, total_steps: int) -> None:
        """Place the draft on the device and make the optimizer and the schedule.

        Trained parameters of less precision than float32 have float32 masters; the target's keep their type.
        """

    @abstractmethod
    def train_step(self, window: Sequence[tuple[Batch, Features]]) -> StepResult:
        """Sum the denominators, run every micro-batch, clip, step. Raises NonFinite before any weight has changed."""

    @abstractmethod
    def validate(self, batches: Iterable[tuple[Batch, Features]]) -> Mapping[str, Metric]:
        """The same loss and metrics, without gradients. Holds one batch at a time."""

    @abstractmethod
    def draft_state(self) -> dict[str, Tensor]:
        """The draft's trained weights, whole, on the CPU, in float32."""

    @abstractmethod
    def target_state(self) -> dict[str, Tensor]:
        """The target's trained weights by parameter name, whole, on the CPU, in float32; {} if it is frozen."""

    @abstractmethod
    def state(self) -> EngineState:
        """What `load_state` needs to continue bit for bit."""

    @abstractmethod
    def load_state(self, draft: Mapping[str, Tensor], target: Mapping[str, Tensor], state: EngineState) -> None:
        """Continue from a checkpoint: `draft_state`, `target_state` and `state`."""

    def finish(self) -> None:
        """Leave the process group."""
