"""The training step that works on supervised slots only and holds no S x V tensor. Equal to `plain.py` in loss and
every gradient.

The heads' maps and the losses are computed in chunks of teacher slots (`specdec_core.nn.distill`), the gradients in
the forward, and the teacher, which the metrics read whatever the loss, once per slot for all heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec_core.capture.features import Features
from specdec_core.data.batch import Batch
from specdec_core.nn.distill import DistillRows, distill
from specdec_core.target.base import Target
from specdec_medusa.config import MedusaConfig
from specdec_medusa.model import MedusaDraft
from specdec_medusa.supervision import labels
from specdec_medusa.terms import Terms

# Teacher slots, and so rows of one head's logits, held at once: enough for full-speed matrix products.
_SLOTS = 384


def fast_terms(
    draft: MedusaDraft,
    batch: Batch,
    features: Features,
    target: Target,
    weights: Tensor,
    supervised: Tensor,
    options: MedusaConfig,
) -> tuple[Tensor, Terms]:
    """The loss and its terms; see `plain_terms`. `supervised` [K, B, S] are the slots that are worked on."""
    assert features.last_hidden is not None
    last_hidden, masks = features.last_hidden.flatten(0, 1), supervised.flatten(1)
    slots = [mask.nonzero().squeeze(1) for mask in masks]
    hidden = draft.project_hidden_states(last_hidden)
    states = torch.cat([draft.head_state(head, hidden[rows]) for head, rows in enumerate(slots)])

    wanted = [rows + 1 + head for head, rows in enumerate(slots)]
    teacher_slots = torch.unique(torch.cat(wanted))
    teacher = target.teacher_chunks(last_hidden.detach()[teacher_slots], draft.draft_ids, _SLOTS)
    rows = DistillRows(
        slots=[torch.searchsorted(teacher_slots, row) for row in wanted],
        weights=weights.flatten(1)[masks],
        labels=labels(batch, draft).flatten(1)[masks] if options.loss == "tokens" else None,
    )
    loss, stats = distill(states, draft.maps, rows, teacher, draft.draft_ids)

    def spread(values: Tensor) -> Tensor:
        full = values.new_zeros(masks.shape)
        full[masks] = values
        return full.view(supervised.shape)

    return loss, Terms(spread(stats.loss), spread(stats.correct), spread(stats.acceptance))
