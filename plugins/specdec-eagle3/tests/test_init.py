"""Weights copied from the target."""

from __future__ import annotations

import pytest
import torch
from eagle3_support import HIDDEN, make
from torch import Tensor

from specdec_core.errors import UserError
from specdec_eagle3.config import Eagle3Config
from specdec_eagle3.model import Eagle3Draft

TWICE = {f"self_attn.{name}_proj.weight" for name in "qkv"}


def layer_weights(draft: Eagle3Draft, layer: int) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in draft.layers[layer].named_parameters()}


@pytest.mark.parametrize("vocab", [None, 20])
def test_head_and_final_norm_are_the_targets(vocab: int | None) -> None:
    algorithm, draft, target = make(Eagle3Config(), vocab)
    algorithm.init_draft(draft, target)
    rows = target.head if draft.draft_ids is None else target.head[draft.draft_ids]
    assert torch.equal(draft.lm_head.weight, rows)
    assert torch.equal(draft.norm.weight, target.layers[12]["weight"])


def test_fc_passes_the_highest_captured_state_through() -> None:
    algorithm, draft, target = make(Eagle3Config(layers=(7, 1, 3)), None)
    algorithm.init_draft(draft, target)
    states = torch.randn(1, 4, 3 * HIDDEN)
    assert torch.equal(draft.project_hidden_states(states), states[..., -HIDDEN:])


@pytest.mark.parametrize("init_layer", [None, 4])
def test_the_first_layer_is_the_targets_over_the_state_and_blind_to_the_embedding(init_layer: int | None) -> None:
    algorithm, draft, target = make(Eagle3Config(init_layer=init_layer), None)
    target.layers[4] = {name: weight + 1 for name, weight in target.layers[11].items()}
    source = target.layers[11 if init_layer is None else init_layer]
    algorithm.init_draft(draft, target)
    own = layer_weights(draft, 0)
    assert torch.equal(own.pop("hidden_norm.weight"), source["input_layernorm.weight"])
    assert own.keys() == source.keys()
    for name, weight in own.items():
        expected = torch.cat([torch.zeros_like(source[name]), source[name]], 1) if name in TWICE else source[name]
        assert torch.equal(weight, expected), name


def test_a_second_layer_is_copied_whole() -> None:
    algorithm, draft, target = make(Eagle3Config(num_layers=2), None)
    algorithm.init_draft(draft, target)
    own = layer_weights(draft, 1)
    assert own.keys() == target.layers[11].keys()
    assert all(torch.equal(own[name], weight) for name, weight in target.layers[11].items())


def test_what_does_not_fit_keeps_its_random_start() -> None:
    algorithm, draft, target = make(Eagle3Config(), None)
    before = {name: p.clone() for name, p in layer_weights(draft, 0).items()}
    target.layers[11]["mlp.up_proj.weight"] = torch.zeros(50, HIDDEN)
    target.layers[11]["self_attn.k_proj.weight"] = torch.zeros(8, HIDDEN)
    del target.layers[11]["mlp.down_proj.weight"]
    algorithm.init_draft(draft, target)
    after = layer_weights(draft, 0)
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert kept == {"mlp.up_proj.weight", "self_attn.k_proj.weight", "mlp.down_proj.weight"}


@pytest.mark.parametrize("layer", [-1, 12])
def test_a_layer_that_the_target_lacks_is_refused(layer: int) -> None:
    algorithm, draft, target = make(Eagle3Config(init_layer=layer), None)
    with pytest.raises(UserError, match=f"^algorithm.init_layer is {layer}; the target's layers are 0 to 11$"):
        algorithm.init_draft(draft, target)
