"""What a step measures at every slot, and the metrics made of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from specdec_core.algorithm.base import Metric
from specdec_core.algorithm.metrics import acceptance_length, by_position
from specdec_core.data.batch import Batch


@dataclass(frozen=True)
class Terms:
    """Values [K, B, S] of each step and slot; only supervised slots mean anything.

    loss        cross-entropy against the teacher restricted to the draft vocabulary
    entropy     of that teacher
    correct     the draft's top token is the target's
    acceptance  1 - TV(p, q) over the whole vocabulary
    """

    loss: Tensor
    entropy: Tensor
    correct: Tensor
    acceptance: Tensor

    def metrics(self, supervised: Tensor, batch: Batch) -> dict[str, Metric]:
        """Means over supervised slots by step, and the acceptance length that chain drafting would have."""
        return {
            **by_position("loss", self.loss, supervised),
            **by_position("accuracy", self.correct, supervised),
            **by_position("acceptance", self.acceptance, supervised),
            **acceptance_length(self.correct, supervised, batch),
        }
