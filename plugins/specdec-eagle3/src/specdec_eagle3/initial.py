"""Where a draft's weights start: copied from the target, as far as shapes allow."""

from __future__ import annotations

import torch
from torch import Tensor

from specdec_core.errors import UserError
from specdec_core.target.base import Target
from specdec_eagle3.model import Eagle3Draft


@torch.no_grad()
def start_from_target(draft: Eagle3Draft, target: Target, init_layer: int | None) -> None:
    """Head and final norm from the target's; the decoder layer from one of its layers; fc passes the
    highest captured state through.

    The layer's attention over [embedding, state] starts with the copied weights on the state's half and
    zeros on the embedding's, so that the first forward is the target's own layer over that state.
    """
    facts = target.facts
    layer_index = facts.num_layers - 1 if init_layer is None else init_layer
    if not 0 <= layer_index < facts.num_layers:
        raise UserError(f"algorithm.init_layer is {init_layer}; the target's layers are 0 to {facts.num_layers - 1}")
    hidden = facts.hidden_size
    draft.lm_head.weight.copy_(target.head_rows(draft.draft_ids))
    draft.norm.weight.copy_(target.layer_state(facts.num_layers)["weight"])
    draft.fc.weight.zero_()
    draft.fc.weight[:, -hidden:] = torch.eye(hidden)
    source = target.layer_state(layer_index)
    for index, layer in enumerate(draft.layers):
        own = dict(layer.named_parameters())
        for name, weight in own.items():
            start = source.get("input_layernorm.weight" if name == "hidden_norm.weight" else name)
            if start is not None:
                _copy(weight, start, beside_embedding=index == 0)


def _copy(weight: Tensor, start: Tensor, beside_embedding: bool) -> None:
    if weight.shape == start.shape:
        weight.copy_(start)
    elif beside_embedding and weight.ndim == 2 and weight.shape[0] == start.shape[0]:
        half = start.shape[1]
        if weight.shape[1] == 2 * half:
            weight[:, :half] = 0
            weight[:, half:] = start
