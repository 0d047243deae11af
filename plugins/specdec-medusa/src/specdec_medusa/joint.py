"""Medusa-2 (arXiv 2401.10774, section 2.2.2): what the target learns beside its heads, its own next token."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from specdec_core.algorithm.base import Metric
from specdec_core.capture.features import Features
from specdec_core.data.batch import Batch, ahead
from specdec_core.nn.labels import LabelStats
from specdec_core.target.base import Target
from specdec_medusa.config import MedusaConfig


def target_slots(batch: Batch) -> Tensor:
    """[B, S] bool: slot t learns x[t+1], which is the assistant's and of the same document."""
    return ahead(batch.loss_mask, 1, False) & batch.same_document(1)


def target_loss(
    batch: Batch, features: Features, target: Target, denominator: Tensor, options: MedusaConfig
) -> tuple[Tensor, dict[str, Metric]]:
    """Sum over `target_slots` of cross-entropy / denominator, and its metrics."""
    assert features.last_hidden is not None
    mask = target_slots(batch)
    labels = ahead(batch.ids, 1, 0)[mask]
    if options.implementation == "plain":
        logits = target.logits(features.last_hidden).float()[mask]
        losses = F.cross_entropy(logits, labels, reduction="none")
        loss = losses.sum() / denominator
        stats = LabelStats(losses.detach(), logits.argmax(-1) == labels)
    else:
        weights = torch.ones_like(labels, dtype=torch.float32) / denominator
        loss, stats = target.label_loss(features.last_hidden[mask], labels, weights)
    count = mask.sum()
    return loss, {
        "target/loss": Metric(stats.loss.sum(), count),
        "target/accuracy": Metric(stats.correct.sum(), count),
    }
