"""The training step that holds no S x S and no S x V tensor, and works on supervised slots only.

Equal to `plain.py` in loss and every gradient. Attention: flash over step 0's keys by runs of slots, the
later steps' own keys merged in by log-sum-exp. Head and loss: `specdec_core.nn.distill`, over all steps at
once, so that the teacher is computed once per slot and the head's gradient is one buffer.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from specdec_core.capture.features import Features
from specdec_core.data.batch import Batch
from specdec_core.nn.attention import segmented_attention
from specdec_core.nn.distill import DistillRows, distill
from specdec_core.target.base import Target
from specdec_eagle3.config import Eagle3Config
from specdec_eagle3.layout import Layout
from specdec_eagle3.model import Eagle3Draft
from specdec_eagle3.positions import in_training
from specdec_eagle3.terms import Terms

# Rows of [rows, D] logits held at once, fewer with recompute: enough for full-speed matrix products, 75 MB at
# D = 49152. Each chunk also adds once to the head's gradient.
_LOGIT_ROWS = 384

KeyValues = list[tuple[Tensor, Tensor]]


class StepAttention:
    """The attention plan of one step. Reads the keys of earlier steps, keeps this step's in `made`."""

    def __init__(self, layout: Layout, step: int, earlier: list[KeyValues]) -> None:
        self.layout, self.step, self.earlier = layout, step, earlier
        self.made: KeyValues = []
        self.last = len(earlier) - 1

    def queries(self, layer: int) -> Tensor | None:
        """At step 0 the last layer's output is needed at active slots only."""
        if self.step == 0 and layer == self.last:
            return torch.searchsorted(self.layout.context, self.layout.active[0])
        return None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query [M, heads, d] over step 0's keys by segments and the own keys of steps 1 to `step`."""
        self.made.append((key, value))
        scale = query.shape[-1] ** -0.5
        if self.step == 0:
            segments = self.layout.segments[0] if layer == self.last else self.layout.whole
            return segmented_attention(query, key, value, None, None, segments, scale)
        active = self.layout.active
        rows = active[self.step]
        own = [
            tuple(x[torch.searchsorted(active[j], rows)] for x in pair)
            for j, pair in enumerate(self.earlier[layer][1:], start=1)
        ]
        own_keys = torch.stack([*(k for k, _ in own), key], dim=1)
        own_values = torch.stack([*(v for _, v in own), value], dim=1)
        first_key, first_value = self.earlier[layer][0]
        segments = self.layout.segments[self.step]
        return segmented_attention(query, first_key, first_value, own_keys, own_values, segments, scale)


def fast_terms(
    draft: Eagle3Draft,
    batch: Batch,
    features: Features,
    target: Target,
    weights: Tensor,
    supervised: Tensor,
    options: Eagle3Config,
) -> tuple[Tensor, Terms]:
    """The loss and its terms; see `plain_terms`. `supervised` [K, B, S] are the slots that are worked on."""
    assert features.last_hidden is not None
    layout = Layout.of(supervised, batch)
    masks = supervised.flatten(1)
    learning = [mask.nonzero().squeeze(1) for mask in masks]
    states = _step_states(draft, batch, features, layout, learning, options)

    wanted = [slots + 1 + k for k, slots in enumerate(learning)]
    teacher_slots = torch.unique(torch.cat(wanted))
    goal = features.last_hidden.flatten(0, 1)[teacher_slots]
    rows = DistillRows(
        slots=[torch.searchsorted(teacher_slots, slots) for slots in wanted],
        weights=torch.cat([w[slots] for w, slots in zip(weights.flatten(1), learning, strict=True)]),
    )
    chunk = max(1, _LOGIT_ROWS // options.steps // (2 if options.recompute else 1))
    teacher = target.teacher_chunks(goal, draft.draft_ids, chunk)
    normed = draft.norm(states)
    loss, stats = distill(normed, draft.lm_head.weight, rows, teacher, draft.draft_ids)
    if options.regression:
        distance = F.smooth_l1_loss(normed, goal[torch.cat(list(rows.slots))], reduction="none").mean(-1)
        loss = loss + options.regression * torch.dot(distance.float(), rows.weights)

    def spread(values: Tensor) -> Tensor:
        full = values.new_zeros(masks.shape)
        full[masks] = values
        return full.view(supervised.shape)

    return loss, Terms(*(spread(x) for x in (stats.loss, stats.entropy, stats.correct, stats.acceptance)))


def _step_states(
    draft: Eagle3Draft,
    batch: Batch,
    features: Features,
    layout: Layout,
    learning: list[Tensor],
    options: Eagle3Config,
) -> Tensor:
    """[R, H] backbone outputs at the supervised slots of every step, step by step."""
    ids, positions = batch.ids.flatten(), in_training(batch, options).flatten(-2)
    embeds = None if features.embeds is None else features.embeds.flatten(0, 1)
    captured = [features.hidden[layer].flatten(0, 1)[layout.context] for layer in sorted(features.hidden)]
    hidden = draft.project_hidden_states(torch.cat(captured, dim=-1))
    made: list[KeyValues] = [[] for _ in draft.layers]

    def step(k: int, rows: Tensor, hidden: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
        per_layer = len(flat) // len(draft.layers)
        earlier = (
            [
                list(zip(flat[i : i + per_layer : 2], flat[i + 1 : i + per_layer : 2], strict=True))
                for i in range(0, len(flat), per_layer)
            ]
            if flat
            else [[] for _ in draft.layers]
        )
        plan = StepAttention(layout, k, earlier)
        following = rows + 1 + k
        embedded = draft.embed_input_ids(ids[following]) if embeds is None else embeds[following]
        turned = (positions[..., rows] + k).unsqueeze(-2)
        out = draft.backbone(embedded.unsqueeze(0), hidden.unsqueeze(0), plan, turned)
        return out.squeeze(0), *(x for pair in plan.made for x in pair)

    outputs = []
    for k in range(options.steps):
        active = layout.active[k]
        rows = layout.context if k == 0 else active
        if k > 0:
            hidden = draft.feedback(hidden)[torch.searchsorted(layout.active[k - 1], active)]
        flat = [x for layer in made for pair in layer for x in pair]
        if options.recompute:
            hidden, *new = checkpoint(step, k, rows, hidden, *flat, use_reentrant=False)
        else:
            hidden, *new = step(k, rows, hidden, *flat)
        for layer, pair in zip(made, zip(new[::2], new[1::2], strict=True), strict=True):
            layer.append(pair)
        outputs.append(hidden[torch.searchsorted(active, learning[k])])
    return torch.cat(outputs)
