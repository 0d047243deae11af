"""The contract of an algorithm: how tokens are proposed, and how the draft that does it is built and trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from specdec_core.algorithm.draft import Draft
from specdec_core.algorithm.proposal import Drafter
from specdec_core.capture.features import CapturePlan, Features
from specdec_core.config.run import DraftSection
from specdec_core.data.batch import Batch
from specdec_core.data.vocab import VocabMap
from specdec_core.errors import UserError
from specdec_core.target.base import Target, TargetFacts


@dataclass(frozen=True)
class Metric:
    """A mean that adds up: over micro-batches, ranks and steps, sums and counts are added, then divided."""

    sum: Tensor
    count: Tensor


@dataclass(frozen=True)
class StepOutput:
    """loss: scalar, a sum already divided by the global denominator. metrics: by name, `accuracy/1` and the like."""

    loss: Tensor
    metrics: Mapping[str, Metric]


@dataclass(frozen=True)
class ExportedDraft:
    """A draft under the names that the world outside uses: config.json and tensors."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float, **settings: Any) -> list[dict[str, Any]]:
    """Two AdamW groups of the same settings: matrices decay, vectors do not."""
    trained = list(parameters)
    return [
        {**settings, "params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {**settings, "params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


class Algorithm(ABC):
    """What every algorithm has. Plugins subclass `TrainedAlgorithm` or `TrainingFreeAlgorithm`.

    Made with the plugin's validated options. Holds no state of a run and knows neither engine nor rank.
    """

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def capture_plan(self, facts: TargetFacts) -> CapturePlan:
        """What the step and the drafter read of the target. Raises UserError if the target cannot give it."""


class TrainingFreeAlgorithm(Algorithm):
    """Proposes as it is: there is no draft to build, train or export."""

    title: ClassVar[str] = ""
    """What reports call it beside a draft; empty for the plugin's name."""

    def capture_plan(self, facts: TargetFacts) -> CapturePlan:
        """What the drafter reads of the target. Default: only the tokens."""
        return CapturePlan()

    @abstractmethod
    def drafter(self, target: Target) -> Drafter:
        """A drafter for one sequence."""


class TrainedAlgorithm(Algorithm):
    """Builds a draft, trains it and proposes with it."""

    @property
    def trains_target(self) -> bool:
        """Whether the target learns with the draft; see `target_group`."""
        return self.target_group() is not None

    @abstractmethod
    def draft_config(self, facts: TargetFacts, draft: DraftSection) -> dict[str, Any]:
        """The draft's HF-style config, JSON-able: read from `draft.config` or derived from the target.

        Raises UserError if the JSON and the target, or the JSON and the other keys of [draft], disagree.
        """

    @abstractmethod
    def build_draft(self, config: Mapping[str, Any], target: Target, vocab: VocabMap | None) -> Draft:
        """A draft with random weights on the CPU in float32; `vocab` is None for the whole vocabulary."""

    def init_draft(self, draft: Draft, target: Target) -> None:
        """Start the draft's weights from the target's (`draft.init = "target"`). Default: leave them random."""

    def fit_draft(self, draft: Draft, target: Target, sample: Iterable[tuple[Batch, Features]]) -> None:
        """After `init_draft`, fit weights to a sample of the training data without gradients (`init = "fitted"`).

        Default: UserError, for an algorithm without such a start.
        """
        raise UserError(f'{type(self).__name__} has no closed-form start; use draft.init = "target" or "random"')

    def parameter_groups(self, draft: Draft, weight_decay: float) -> list[dict[str, Any]]:
        """AdamW parameter groups of what is trained of the draft. Besides AdamW's own settings a group may have

        lr_scale   what its learning rate, `lr` or else train.lr, is multiplied by; default 1
        starts_at  the share of the run's steps, in [0, 1), before which its weights and moments stand still; its
                   schedule, warm-up included, spans the steps from there to the end; default 0

        Default: matrices decay, vectors do not.
        """
        return decay_groups((p for p in draft.parameters() if p.requires_grad), weight_decay)

    def target_group(self) -> dict[str, Any] | None:
        """How the target is trained: the settings of a group, without parameters; default: None, it is frozen.

        If it is trained, the step gets features with gradients, captured in the step, and `denominator` gets none.
        The target stays in evaluation mode: no dropout. Feature caches are refused.
        """
        return None

    @abstractmethod
    def denominator(self, draft: Draft, batch: Batch, features: Features) -> Tensor:
        """[K] this micro-batch's share of what the loss's terms are divided by (per step or head).

        The engine sums it over ranks and the accumulation window before the first backward. `features` is empty if
        the algorithm trains the target.
        """

    @abstractmethod
    def training_step(
        self, draft: Draft, batch: Batch, features: Features, target: Target, denominator: Tensor
    ) -> StepOutput:
        """The loss of one micro-batch. `denominator` [K] is global, so any split gives the same gradient."""

    @abstractmethod
    def drafter(self, draft: Draft, target: Target) -> Drafter:
        """A drafter for one sequence."""

    @abstractmethod
    def export(self, draft: Draft, facts: TargetFacts) -> ExportedDraft:
        """The draft under the names that inference engines and the Hub use."""

    def load_exported(self, draft: Draft, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `export`. Raises UserError on a missing, unexpected or misshapen tensor."""
        raise NotImplementedError(f"{type(self).__name__} cannot read exported drafts")
