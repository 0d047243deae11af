"""The contract of an algorithm: how tokens are proposed, and how the draft that does it is built and trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

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

    trains_target: ClassVar[bool] = False

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
        """AdamW parameter groups of what is trained; `lr_scale` in a group multiplies train.lr.

        Default: matrices decay, vectors do not.
        """
        trained = [p for p in draft.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]

    @abstractmethod
    def denominator(self, draft: Draft, batch: Batch, features: Features) -> Tensor:
        """[K] this micro-batch's share of what the loss's terms are divided by (per step or head).

        The engine sums it over ranks and the accumulation window before the first backward.
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
