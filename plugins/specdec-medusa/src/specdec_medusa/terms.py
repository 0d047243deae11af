"""What a step measures at every slot, and the metrics made of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from specdec_core.algorithm.base import Metric
from specdec_core.algorithm.metrics import acceptance_length, by_position
from specdec_core.data.batch import Batch


@dataclass(frozen=True)
class Terms:
    """Values [K, B, S] of each head and slot; only supervised slots mean anything.

    loss        cross-entropy against the data's token, or the target's distribution over the draft vocabulary
    correct     the head's top token is the target's
    acceptance  1 - TV(p, q) over the whole vocabulary
    """

    loss: Tensor
    correct: Tensor
    acceptance: Tensor

    def metrics(self, supervised: Tensor, learned: Tensor, batch: Batch) -> dict[str, Metric]:
        """Means by head, of the loss over `learned` slots, and the acceptance length that chain drafting would have."""
        return {
            **by_position("loss", self.loss, learned),
            **by_position("accuracy", self.correct, supervised),
            **by_position("acceptance", self.acceptance, supervised),
            **acceptance_length(self.correct, supervised, batch),
        }
