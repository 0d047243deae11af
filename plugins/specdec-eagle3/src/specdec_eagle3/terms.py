"""What a step measures at every slot, and the metrics made of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec_core.algorithm.base import Metric
from specdec_core.data.batch import Batch
from specdec_core.nn.replay import simulated_acceptance_length


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
        metrics = {}
        for name, values in (
            ("loss", self.loss),
            ("accuracy", self.correct.float()),
            ("acceptance", self.acceptance),
        ):
            sums = torch.where(supervised, values.detach(), 0.0).sum((1, 2))
            counts = supervised.sum((1, 2))
            for k, (total, count) in enumerate(zip(sums, counts, strict=True), start=1):
                metrics[f"{name}/{k}"] = Metric(total, count)
        rows = torch.arange(batch.ids.shape[0], device=batch.ids.device).unsqueeze(1)
        documents = rows * (batch.document_ids.max() + 2) + batch.document_ids
        tokens, cycles = simulated_acceptance_length(
            (self.correct & supervised).flatten(1), supervised[-1].flatten(), documents.flatten()
        )
        metrics["acceptance_length"] = Metric(torch.tensor(float(tokens)), torch.tensor(float(cycles)))
        return metrics
