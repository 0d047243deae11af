"""Rotary position embedding for drafts, by one axis of positions or by several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from specdec_core.errors import UserError

AXES_KEYS = ("mrope_section", "mrope_interleaved", "mrope_layout")
"""Keys of `rope_parameters` that say which axis of positions each dimension reads."""
LAYOUTS = ("half", "doubled")


class Rotary(nn.Module):
    """Rotary position embedding (arXiv 2104.09864) with the scaling and the axes that an HF-style config names.

    Of `config` it reads `head_dim` d, `rope_theta` and `rope_parameters`; for scaled types also `hidden_size`,
    `num_attention_heads` and `max_position_embeddings`. With `mrope_section` in `rope_parameters` positions have one
    axis a section, and dimensions read different ones (M-RoPE, arXiv 2409.12191, section 2.1). The sections sum to
    d / 2 and are laid out

        one after another over the d / 2 frequencies; by default
        in turns over the frequencies, until an axis has its share and the first takes the rest; `mrope_interleaved`
        one after another over the d dimensions, each twice as long; `mrope_layout` = "doubled"

    Raises UserError if the type of scaling is unknown or if the sections do not fit.
    """

    inv_freq: Tensor
    axes: Tensor | None

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        rope = {"rope_theta": config.get("rope_theta", 10000.0), "rope_type": "default", **config["rope_parameters"]}
        dim = config["head_dim"]
        with torch.device("cpu"):  # their values are needed at once, also where a draft is built without memory
            axes = _axes(rope, dim)
            inv_freq, self.scaling = _frequencies({k: v for k, v in rope.items() if k not in AXES_KEYS}, config)
        self.num_axes = 1 if axes is None else len(rope["mrope_section"])
        self.register_buffer("inv_freq", inv_freq.float(), persistent=False)
        self.register_buffer("axes", axes, persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [n], or [A, ...] on each of A axes, -> cos and sin [n, d] or [..., d] float32.

        A single axis ([n] or [1, ...]) stands for all. Without sections the first axis is read, whatever A is.
        """
        if positions.ndim == 1:
            positions = positions.unsqueeze(0)
        frequencies = torch.cat([self.inv_freq, self.inv_freq]).float()
        if self.axes is None or positions.shape[0] == 1:
            angles = positions[0].float().unsqueeze(-1) * frequencies
        elif positions.shape[0] != self.num_axes:
            raise ValueError(f"positions have {positions.shape[0]} axes, rope_parameters names {self.num_axes}")
        else:
            angles = positions.float()[self.axes].movedim(0, -1) * frequencies
        return angles.cos() * self.scaling, angles.sin() * self.scaling


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[..., d] turned by angles whose cos and sin broadcast to it; dimension i pairs with i + d / 2."""
    low, high = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-high, low], dim=-1) * sin.to(x.dtype)


def _axes(rope: Mapping[str, Any], dim: int) -> Tensor | None:
    """[d] int64: the axis that each dimension reads; None where there is one only."""
    sections = rope.get("mrope_section")
    if sections is None:
        return None
    layout, half = rope.get("mrope_layout", LAYOUTS[0]), dim // 2
    if layout not in LAYOUTS:
        raise UserError(f'the draft\'s rope_parameters have mrope_layout "{layout}"; allowed: {", ".join(LAYOUTS)}')
    whole = isinstance(sections, list | tuple) and all(isinstance(x, int) and x >= 0 for x in sections)
    if not whole or sum(sections) != half:
        raise UserError(
            f"the draft's rope_parameters have mrope_section {sections}; it takes whole numbers that sum to {half}, "
            "half of head_dim"
        )
    each = torch.tensor(sections)
    if not rope.get("mrope_interleaved"):
        if layout == "doubled":
            return torch.repeat_interleave(2 * each)
        return torch.repeat_interleave(each).repeat(2)
    if layout == "doubled":
        raise UserError('the draft\'s rope_parameters have mrope_interleaved beside mrope_layout "doubled"; drop one')
    turns, axis = torch.arange(half) // len(sections), torch.arange(half) % len(sections)
    axes = torch.where(turns < each[axis], axis, 0)
    if axes.bincount(minlength=len(sections)).tolist() != list(sections):
        raise UserError(
            f"the draft's rope_parameters have mrope_section {sections}, which cannot be interleaved: "
            "every axis but the first needs a turn for each of its frequencies"
        )
    return axes.repeat(2)


def _frequencies(rope: dict[str, Any], config: Mapping[str, Any]) -> tuple[Tensor, float]:
    """[d / 2] radians a position, and what cos and sin are multiplied by."""
    kind, dim, theta = rope["rope_type"], config["head_dim"], rope["rope_theta"]
    if kind == "dynamic" and rope.get("alpha"):
        # NTK-aware scaling by a fixed factor: the base is stretched once, whatever the length of the text.
        kind, theta = "default", theta * rope["alpha"] ** (dim / (dim - 2))
    if kind == "default":
        return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim), 1.0
    if kind not in ROPE_INIT_FUNCTIONS:
        allowed = ", ".join(["default", *sorted(ROPE_INIT_FUNCTIONS)])
        raise UserError(f'the draft\'s rope_type is "{kind}"; allowed: {allowed}')
    named = ("hidden_size", "num_attention_heads", "max_position_embeddings")
    scaled = PretrainedConfig(head_dim=dim, rope_parameters=rope, **{key: config[key] for key in named})
    inv_freq, scaling = ROPE_INIT_FUNCTIONS[kind](scaled)
    return inv_freq, scaling
