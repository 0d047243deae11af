"""Rotary embedding against transformers' own modules, one or several axes of positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import LlamaConfig, Qwen2_5_VLTextConfig, Qwen2VLTextConfig, Qwen3VLTextConfig
from transformers.models.hunyuan_vl.configuration_hunyuan_vl import HunYuanVLTextConfig
from transformers.models.hunyuan_vl.modeling_hunyuan_vl import HunYuanVLRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

from specdec_core.errors import UserError
from specdec_core.nn.rotary import Rotary, rotate

HEAD_DIM = 16
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 256,
}
# Family -> its config, its module, what its rope_parameters say, and what its backbone says besides.
FAMILIES: dict[str, tuple[Callable[..., Any], Callable[..., nn.Module], dict[str, Any], dict[str, Any]]] = {
    "qwen2_vl": (Qwen2VLTextConfig, Qwen2VLRotaryEmbedding, {"mrope_section": [2, 3, 3]}, {}),
    "qwen2_5_vl": (Qwen2_5_VLTextConfig, Qwen2_5_VLRotaryEmbedding, {"mrope_section": [2, 1, 5]}, {}),
    "qwen3_vl": (
        Qwen3VLTextConfig,
        Qwen3VLTextRotaryEmbedding,
        {"mrope_section": [4, 2, 2]},
        {"mrope_interleaved": True},
    ),
    "hunyuan_vl": (
        HunYuanVLTextConfig,
        HunYuanVLRotaryEmbedding,
        {"mrope_section": [1, 2, 2, 3], "rope_type": "dynamic", "alpha": 1000.0, "factor": 1.0},
        {"mrope_layout": "doubled"},
    ),
}


def config(**rope: Any) -> dict[str, Any]:
    return {**SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5, **rope}}


def random_positions(axes: int, *shape: int) -> Tensor:
    return torch.randint(0, 200, (axes, *shape), generator=torch.Generator().manual_seed(axes))


@pytest.mark.parametrize("family", FAMILIES)
def test_angles_are_those_of_the_family_on_every_axis(family: str) -> None:
    make_config, module, rope, besides = FAMILIES[family]
    whole = config(**rope)
    reference = module(make_config(**{**SIZES, "rope_parameters": dict(whole["rope_parameters"])}))
    own = Rotary(config(**rope, **besides))
    positions = random_positions(len(rope["mrope_section"]), 2, 9)
    for found, expected in zip(own(positions), reference(torch.zeros(1), positions), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
@given(st.lists(st.integers(0, 10**5), min_size=1, max_size=9))
def test_positions_of_text_turn_as_without_axes(family: str, positions: list[int]) -> None:
    *_, rope, besides = FAMILIES[family]
    several, text = Rotary(config(**rope, **besides)), torch.tensor(positions)
    plain = Rotary(config(**{key: rope[key] for key in rope if key != "mrope_section"}))(text)
    axes = len(rope["mrope_section"])
    for given_ in (text, text.unsqueeze(0), text.expand(axes, -1)):
        assert all(torch.equal(a, b) for a, b in zip(several(given_), plain, strict=True))


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
)
def test_scaling_and_turning_are_transformers_own(rope: dict[str, Any]) -> None:
    whole = config(**rope)
    reference = LlamaRotaryEmbedding(LlamaConfig(**{**SIZES, "rope_parameters": dict(whole["rope_parameters"])}))
    positions, x = torch.arange(40), torch.randn(1, 40, 4, HEAD_DIM)
    cos, sin = reference(x, positions.unsqueeze(0))
    expected, _ = apply_rotary_pos_emb(x, x, cos, sin, unsqueeze_dim=2)
    own = rotate(x, *(part.unsqueeze(-2) for part in Rotary(whole)(positions)))
    assert torch.equal(own, expected)


def test_without_sections_the_first_axis_is_read() -> None:
    positions = random_positions(3, 7)
    one = Rotary(config())
    assert all(torch.equal(a, b) for a, b in zip(one(positions), one(positions[0]), strict=True))


def test_another_number_of_axes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^positions have 2 axes, rope_parameters names 3$"):
        Rotary(config(mrope_section=[2, 3, 3]))(random_positions(2, 7))


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "foo"}, r'rope_type is "foo"; allowed: default, dynamic, '),
        ({"mrope_section": [2, 3, 4]}, r"mrope_section \[2, 3, 4\]; it takes whole numbers that sum to 8, half"),
        ({"mrope_section": [2.5, 2.5, 3]}, r"mrope_section \[2.5, 2.5, 3\]; it takes whole numbers"),
        ({"mrope_section": 8}, r"mrope_section 8; it takes whole numbers"),
        ({"mrope_section": [-1, 5, 4]}, r"mrope_section \[-1, 5, 4\]; it takes whole numbers"),
        ({"mrope_section": [1, 3, 4], "mrope_interleaved": True}, r"\[1, 3, 4\], which cannot be interleaved: every"),
        ({"mrope_section": [2, 3, 3], "mrope_layout": "odd"}, r'mrope_layout "odd"; allowed: half, doubled'),
        (
            {"mrope_section": [4, 2, 2], "mrope_layout": "doubled", "mrope_interleaved": True},
            r'mrope_interleaved beside mrope_layout "doubled"; drop one',
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(rope: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Rotary(config(**rope))
