"""The training step as the paper writes it: every slot, every step, dense masks, whole logits.

Slow and large on purpose. It is what the fast step must equal, and what a reader checks against
arXiv 2503.01840, section 3.2 (training-time test).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from specdec_core.capture.features import Features
from specdec_core.data.batch import Batch, ahead
from specdec_core.target.base import Target
from specdec_eagle3.config import Eagle3Config
from specdec_eagle3.model import Eagle3Draft
from specdec_eagle3.positions import in_training
from specdec_eagle3.terms import Terms


class DenseAttention:
    """All slots of all steps so far as keys, under one boolean mask."""

    def __init__(self, documents: Tensor, num_layers: int) -> None:
        rows = torch.arange(documents.numel(), device=documents.device)
        row_of = rows // documents.shape[1]
        flat = documents.flatten()
        same = (flat[:, None] == flat[None, :]) & (row_of[:, None] == row_of[None, :])
        # Padding attends itself, so that its (unused) softmax is finite.
        self.context = same & (rows[None, :] <= rows[:, None])
        self.own = torch.eye(documents.numel(), dtype=torch.bool, device=documents.device)
        self.keys: list[list[Tensor]] = [[] for _ in range(num_layers)]
        self.values: list[list[Tensor]] = [[] for _ in range(num_layers)]

    def queries(self, layer: int) -> Tensor | None:
        """Every row goes on."""
        return None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Softmax over step 0's causal keys and every later step's key of the query's own slot."""
        self.keys[layer].append(key)
        self.values[layer].append(value)
        group = query.shape[1] // key.shape[1]
        keys = torch.cat(self.keys[layer]).repeat_interleave(group, dim=1)
        values = torch.cat(self.values[layer]).repeat_interleave(group, dim=1)
        mask = torch.cat([self.context] + [self.own] * (len(self.keys[layer]) - 1), dim=1)
        scores = torch.einsum("qhd,khd->hqk", query, keys) / math.sqrt(query.shape[-1])
        probs = scores.masked_fill(~mask, float("-inf")).softmax(-1)
        return torch.einsum("hqk,khd->qhd", probs, values)


def plain_terms(
    draft: Eagle3Draft, batch: Batch, features: Features, target: Target, weights: Tensor, options: Eagle3Config
) -> tuple[Tensor, Terms]:
    """The loss and its terms at every slot and step.

    weights  [K, B, S] what each slot's cross-entropy is multiplied by: slot weight, step weight and denominator
    """
    assert features.last_hidden is not None
    attention = DenseAttention(batch.document_ids, len(draft.layers))
    hidden = draft.project_hidden_states(features.stacked())
    teacher = target.logits(features.last_hidden).float()
    ids = draft.draft_ids if draft.draft_ids is not None else torch.arange(teacher.shape[-1], device=teacher.device)
    loss, entropy, correct, acceptance, regression = ([] for _ in range(5))
    for k in range(options.steps):
        if features.embeds is None:
            embeds = draft.embed_input_ids(ahead(batch.ids, 1 + k, 0))
        else:
            embeds = ahead(features.embeds, 1 + k, 0)
        hidden = draft.backbone(embeds, hidden, attention, in_training(batch, options) + k)
        logits = draft.compute_logits(hidden).float()
        full = ahead(teacher, 1 + k, 0)
        log_p = F.log_softmax(full[..., ids], dim=-1)
        log_q = F.log_softmax(logits, dim=-1)
        loss.append(-(log_p.exp() * log_q).sum(-1))
        entropy.append(-(log_p.exp() * log_p).sum(-1))
        correct.append(ids[logits.argmax(-1)] == full.argmax(-1))
        acceptance.append(torch.minimum(full.softmax(-1)[..., ids], log_q.exp()).sum(-1))
        goal = ahead(features.last_hidden, 1 + k, 0)
        regression.append(F.smooth_l1_loss(draft.norm(hidden), goal, reduction="none").mean(-1))
        hidden = draft.feedback(hidden)
    terms = Terms(*(torch.stack(x) for x in (loss, entropy, correct, acceptance)))
    total = (weights * (terms.loss + options.regression * torch.stack(regression))).sum()
    return total, terms
