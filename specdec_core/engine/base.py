"""The contract of an engine: it owns the optimizer, the device and the ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from specdec_core.algorithm.base import Metric, StepOutput, TrainedAlgorithm
from specdec_core.algorithm.draft import Draft
from specdec_core.capture.features import Features
from specdec_core.config.run import TrainSection
from specdec_core.data.batch import Batch
from specdec_core.errors import UserError
from specdec_core.target.base import Target


class StepModule(nn.Module):
    """The step as one `forward`, so that an engine's hooks on modules fire."""

    def __init__(self, algorithm: TrainedAlgorithm, draft: Draft, target: Target) -> None:
        super().__init__()
        self.draft = draft
        self.algorithm = algorithm
        self.target = target

    def denominator(self, batch: Batch, features: Features) -> Tensor:
        """[K] this micro-batch's share of the denominators."""
        return self.algorithm.denominator(self.draft, batch, features)

    def forward(self, batch: Batch, features: Features, denominator: Tensor) -> StepOutput:
        """One micro-batch's loss and metrics."""
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
        """Place the draft on the device and make the optimizer and the schedule."""

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
    def state(self) -> EngineState:
        """What `load_state` needs to continue bit for bit."""

    @abstractmethod
    def load_state(self, draft: Mapping[str, Tensor], state: EngineState) -> None:
        """Continue from a checkpoint."""

    def finish(self) -> None:
        """Leave the process group."""
