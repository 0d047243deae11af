"""The training step as the paper writes it: every slot, every head, whole logits.

Slow and large on purpose. It is what the fast step must equal, and what a reader checks against arXiv 2401.10774,
section 2.2.1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from specdec_core.capture.features import Features
from specdec_core.data.batch import Batch, ahead
from specdec_core.target.base import Target
from specdec_medusa.config import MedusaConfig
from specdec_medusa.model import MedusaDraft
from specdec_medusa.supervision import labels
from specdec_medusa.terms import Terms


def plain_terms(
    draft: MedusaDraft, batch: Batch, features: Features, target: Target, weights: Tensor, options: MedusaConfig
) -> tuple[Tensor, Terms]:
    """The loss and its terms at every slot and head.

    weights  [K, B, S] what each slot's cross-entropy is multiplied by: head weight over denominator, 0 if not learned
    """
    assert features.last_hidden is not None
    logits = draft.compute_logits(draft.project_hidden_states(features.last_hidden)).float()
    with torch.no_grad():
        teacher = target.logits(features.last_hidden).float()
    ids = draft.draft_ids if draft.draft_ids is not None else torch.arange(teacher.shape[-1], device=teacher.device)
    says = labels(batch, draft)
    loss, correct, acceptance = ([] for _ in range(3))
    for head in range(options.heads):
        full = ahead(teacher, 1 + head, 0)
        log_q = F.log_softmax(logits[head], dim=-1)
        if options.loss == "tokens":
            loss.append(-log_q.gather(-1, says[head].clamp(min=0).unsqueeze(-1)).squeeze(-1))
        else:
            loss.append(-(full[..., ids].softmax(-1) * log_q).sum(-1))
        correct.append(ids[logits[head].argmax(-1)] == full.argmax(-1))
        acceptance.append(torch.minimum(full.softmax(-1)[..., ids], log_q.exp()).sum(-1))
    terms = Terms(*(torch.stack(x) for x in (loss, correct, acceptance)))
    return (weights * terms.loss).sum(), terms
