"""Which slots are supervised for which head, and what they are to say."""

from __future__ import annotations

import torch
from torch import Tensor

from specdec_core.data.batch import Batch, ahead
from specdec_medusa.config import MedusaConfig
from specdec_medusa.model import MedusaDraft


def supervised_slots(batch: Batch, options: MedusaConfig) -> Tensor:
    """[K, B, S] bool: slot t learns for head i, which predicts x[t+2+i]. m is the loss mask.

    strict     m[t+1 .. t+2+i] all hold: a draft that starts at t has only the assistant's tokens before what it
               predicts
    predicted  m[t+2+i] holds

    By both, slots t .. t+2+i are one document.
    """
    masks = []
    current = ahead(batch.loss_mask, 1, False)
    for head in range(options.heads):
        predicted = ahead(batch.loss_mask, 2 + head, False) & batch.same_document(2 + head)
        current = current & predicted
        masks.append(current if options.mask == "strict" else predicted)
    return torch.stack(masks)


def labels(batch: Batch, draft: MedusaDraft) -> Tensor:
    """[K, B, S] int64: the head's row that stands for x[t+2+i]; -1 where the draft cannot say it or the row ends."""
    rows = draft.rows_of(batch.ids)
    return torch.stack([ahead(rows, 2 + head, -1) for head in range(draft.num_heads)])


def learned_slots(supervised: Tensor, batch: Batch, draft: MedusaDraft, options: MedusaConfig) -> Tensor:
    """[K, B, S] bool: the supervised slots that have a loss; a token that the draft cannot say has none."""
    return supervised & (labels(batch, draft) >= 0) if options.loss == "tokens" else supervised
