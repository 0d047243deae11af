"""The metrics that tables, progress bars and the choice of the best checkpoint read, made of values by position."""

from __future__ import annotations

import torch
from torch import Tensor

from specdec_core.algorithm.base import Metric
from specdec_core.data.batch import Batch
from specdec_core.nn.replay import simulated_acceptance_length


def by_position(name: str, values: Tensor, counted: Tensor) -> dict[str, Metric]:
    """`NAME/1`, `NAME/2`, ...: the mean of `values` [K, B, S] over the slots `counted` [K, B, S] of each position."""
    sums = torch.where(counted, values.detach().float(), 0.0).sum((1, 2))
    counts = counted.sum((1, 2))
    pairs = zip(sums, counts, strict=True)
    return {f"{name}/{position}": Metric(total, count) for position, (total, count) in enumerate(pairs, start=1)}


def acceptance_length(correct: Tensor, supervised: Tensor, batch: Batch) -> dict[str, Metric]:
    """`acceptance_length`: what greedy chain drafting would have had on this text; see `nn.replay`.

    correct, supervised  [K, B, S] bool: the token drafted k-th from a slot is the target's; it counts
    """
    rows = torch.arange(batch.ids.shape[0], device=batch.ids.device).unsqueeze(1)
    documents = rows * (batch.document_ids.max() + 2) + batch.document_ids
    tokens, cycles = simulated_acceptance_length(
        (correct & supervised).flatten(1), supervised[-1].flatten(), documents.flatten()
    )
    return {"acceptance_length": Metric(torch.tensor(float(tokens)), torch.tensor(float(cycles)))}
