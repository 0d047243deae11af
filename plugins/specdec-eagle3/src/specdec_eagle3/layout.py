"""The fast step's bookkeeping: which rows are worked on at each step, and which keys they see.

Slots of a batch are flattened to N = B * S. Step k works on the slots that are supervised at step k or
later (they feed each other), so the sets shrink from step to step. Step 0 also makes keys for the
context: every slot from a document's start to its last active one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from specdec_core.data.batch import Batch
from specdec_core.nn.attention import Segment
from specdec_eagle3.positions import document_starts


@dataclass(frozen=True)
class Layout:
    """Row sets of one micro-batch; N flattened slots, K steps.

    context   [C] slots whose step-0 keys are seen
    active    per step, [M_k] slots worked on; a subset of the step before
    segments  per step, the runs of active slots and their keys' range in `context`
    whole     the same with all of the context as queries (layers below the last, at step 0)
    """

    context: Tensor
    active: list[Tensor]
    segments: list[list[Segment]]
    whole: list[Segment]

    @classmethod
    def of(cls, supervised: Tensor, batch: Batch) -> Layout:
        """From `supervised` [K, B, S]; the index tensors lie on the batch's device."""
        device = batch.ids.device
        masks = supervised.flatten(1).cpu()
        active = masks.flip(0).cummax(0).values.flip(0)
        starts = document_starts(batch.document_ids.cpu())
        size = starts.numel()
        index = torch.arange(size)
        # The next active slot at or after each slot; `size` where there is none.
        following = torch.where(active[0], index, size).flip(0).cummin(0).values.flip(0)
        context = (following < size) & (starts[following.clamp(max=size - 1)] <= index)
        place = context.cumsum(0) - 1
        return cls(
            context=context.nonzero().squeeze(1).to(device),
            active=[row.nonzero().squeeze(1).to(device) for row in active],
            segments=[_segments(row, starts, place) for row in active],
            whole=_segments(context, starts, place),
        )


def _segments(queries: Tensor, starts: Tensor, place: Tensor) -> list[Segment]:
    """Runs of neighbouring query slots of one document, as ranges in the query and the context arrays."""
    slots = queries.nonzero().squeeze(1)
    if not slots.numel():
        return []
    breaks = (slots[1:] != slots[:-1] + 1) | (starts[slots[1:]] != starts[slots[:-1]])
    edges = [0, *(breaks.nonzero().squeeze(1) + 1).tolist(), slots.numel()]
    return [
        Segment(low, high, int(place[starts[slots[low]]]), int(place[slots[high - 1]]) + 1)
        for low, high in pairwise(edges)
    ]
