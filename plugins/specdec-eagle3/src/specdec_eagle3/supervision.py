"""Which slots are supervised at which training-time-test step, and what their losses are divided by."""

from __future__ import annotations

import torch
from torch import Tensor

from specdec_core.capture.features import Features
from specdec_core.data.batch import Batch, ahead
from specdec_eagle3.config import Eagle3Config


def supervised_slots(batch: Batch, options: Eagle3Config) -> Tensor:
    """[K, B, S] bool: slot t learns at step k. m is the loss mask; every convention stays in one document.

    strict       m[t+1 .. t+2+k] all hold, and slots t .. t+2+k are one document: a draft that starts at t has
                 only the assistant's tokens before what it predicts
    speculators  m[t+1+k] holds, the teacher's slot t+1+k is in the document
    specforge    m[t+k] holds, likewise
    """
    masks = []
    if options.mask == "strict":
        current = ahead(batch.loss_mask, 1, False)
        for k in range(options.steps):
            current = current & ahead(batch.loss_mask, 2 + k, False) & batch.same_document(2 + k)
            masks.append(current)
    else:
        offset = 1 if options.mask == "speculators" else 0
        for k in range(options.steps):
            masks.append(ahead(batch.loss_mask, offset + k, False) & batch.same_document(1 + k))
    return torch.stack(masks)


def slot_weights(batch: Batch, features: Features, options: Eagle3Config, in_vocab: Tensor | None) -> Tensor:
    """[K, B, S] what each slot's loss counts for, before step weights and denominators."""
    weights = supervised_slots(batch, options).float()
    if options.filter_teacher and in_vocab is not None:
        assert features.argmax is not None
        sayable = in_vocab[features.argmax]
        for k in range(options.steps):
            weights[k] *= ahead(sayable, 1 + k, False)
    if options.reduction == "sequence":
        weights /= _tokens_per_sequence(batch, weights).clamp(min=1)
    return weights


def denominators(batch: Batch, weights: Tensor, options: Eagle3Config) -> Tensor:
    """[K] what the sums of weighted losses are divided by."""
    if options.reduction == "slot":
        return torch.full((options.steps,), float(batch.ids.numel()), device=weights.device)
    return weights.sum((1, 2))


def _tokens_per_sequence(batch: Batch, weights: Tensor) -> Tensor:
    """[K, B, S] the weight that each slot's document holds at each step."""
    index = batch.document_ids.clamp(min=0).unsqueeze(0).expand(weights.shape[0], -1, -1)
    totals = torch.zeros_like(weights).scatter_add_(2, index, weights)
    return totals.gather(2, index)
