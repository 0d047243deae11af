"""The EAGLE-3 draft (arXiv 2503.01840, section 3.1): fc over captured states, one or two decoder layers, a head.

Rows: every function here works on [rows, ...]; which row attends which is the attention plan's affair, so
the same modules serve the plain step, the fast step and decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specdec_core.algorithm.vocabulary import VocabDraft
from specdec_core.data.vocab import VocabMap
from specdec_core.nn.attention import AttentionPlan
from specdec_core.nn.lean import RMSNorm, swiglu_down
from specdec_core.nn.linear import Linear
from specdec_core.nn.rotary import Rotary, rotate
from specdec_core.target.base import Target


class Attention(nn.Module):
    """Grouped-query attention; the first layer reads [embedding, state], twice the hidden size."""

    def __init__(self, config: Mapping[str, Any], layer: int) -> None:
        super().__init__()
        hidden, dim, bias = config["hidden_size"], config["head_dim"], bool(config.get("attention_bias"))
        self.layer, self.head_dim = layer, dim
        width = 2 * hidden if layer == 0 else hidden
        self.q_proj = Linear(width, config["num_attention_heads"] * dim, bias=bias)
        self.k_proj = Linear(width, config["num_key_value_heads"] * dim, bias=bias)
        self.v_proj = Linear(width, config["num_key_value_heads"] * dim, bias=bias)
        self.o_proj = Linear(config["num_attention_heads"] * dim, hidden, bias=bias)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], plan: AttentionPlan) -> Tensor:
        """[C, width] -> [M, H] for the plan's queries."""
        cos, sin = angles
        key = rotate(self.k_proj(x).unflatten(-1, (-1, self.head_dim)), cos, sin)
        value = self.v_proj(x).unflatten(-1, (-1, self.head_dim))
        rows = plan.queries(self.layer)
        if rows is not None:
            x, cos, sin = x[rows], cos[rows], sin[rows]
        query = rotate(self.q_proj(x).unflatten(-1, (-1, self.head_dim)), cos, sin)
        attended: Tensor = self.o_proj(plan.attend(self.layer, query, key, value).flatten(-2))
        return attended


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        hidden, inner, bias = config["hidden_size"], config["intermediate_size"], bool(config.get("mlp_bias"))
        self.gate_proj = Linear(hidden, inner, bias=bias)
        self.up_proj = Linear(hidden, inner, bias=bias)
        self.down_proj = Linear(inner, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, H] -> [rows, H]."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        if torch.is_grad_enabled():
            return swiglu_down(gate, up, self.down_proj.weight, self.down_proj.bias)
        projected: Tensor = self.down_proj(F.silu(gate).mul_(up))
        return projected


class DecoderLayer(nn.Module):
    """A pre-norm decoder layer; the first one takes the next token's embedding beside the state."""

    def __init__(self, config: Mapping[str, Any], layer: int) -> None:
        super().__init__()
        hidden, eps = config["hidden_size"], config["rms_norm_eps"]
        self.layer = layer
        self.norm_before_residual = bool(config.get("norm_before_residual"))
        self.input_layernorm = RMSNorm(hidden, eps=eps)
        if layer == 0:
            self.hidden_norm = RMSNorm(hidden, eps=eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(hidden, eps=eps)
        self.mlp = MLP(config)

    def forward(self, embeds: Tensor, hidden: Tensor, angles: tuple[Tensor, Tensor], plan: AttentionPlan) -> Tensor:
        """embeds and hidden [C, H] -> [M, H] for the plan's queries, before the final norm."""
        if self.layer == 0:
            normed = self.hidden_norm(hidden)
            inputs = torch.cat([self.input_layernorm(embeds), normed], dim=-1)
            residual = normed if self.norm_before_residual else hidden
        else:
            inputs, residual = self.input_layernorm(hidden), hidden
        rows = plan.queries(self.layer)
        residual = residual if rows is None else residual[rows]
        residual = residual + self.self_attn(inputs, angles, plan)
        output: Tensor = residual + self.mlp(self.post_attention_layernorm(residual))
        return output


class Eagle3Draft(VocabDraft):
    """The draft. `config` is its HF-style config; `vocab` is None for the target's whole vocabulary."""

    in_vocab: Tensor | None

    def __init__(self, config: Mapping[str, Any], target: Target, vocab: VocabMap | None) -> None:
        super().__init__(config, target, vocab)
        hidden, eps = config["hidden_size"], config["rms_norm_eps"]
        states = len(config["eagle_aux_hidden_state_layer_ids"])
        self.fc_norm = nn.ModuleList([RMSNorm(hidden, eps=eps) for _ in range(states if config["fc_norm"] else 0)])
        self.fc = Linear(states * hidden, hidden, bias=False)
        self.layers = nn.ModuleList([DecoderLayer(config, i) for i in range(config["num_hidden_layers"])])
        self.norm = RMSNorm(hidden, eps=eps)
        self.lm_head = Linear(hidden, config["draft_vocab_size"], bias=False)
        self.rotary = Rotary(config)
        self.norm_output = bool(config["norm_output"])
        self.register_buffer("in_vocab", None if vocab is None else vocab.t2d, persistent=False)

    def project_hidden_states(self, hidden: Tensor) -> Tensor:
        """[..., k*H] captured states in ascending layer order -> [..., H], in the draft's own type."""
        hidden = hidden.to(self.fc.weight.dtype)
        if len(self.fc_norm):
            parts = hidden.chunk(len(self.fc_norm), dim=-1)
            hidden = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], dim=-1)
        projected: Tensor = self.fc(hidden)
        return projected

    def backbone(
        self, embeds: Tensor, hidden: Tensor, attention: AttentionPlan, positions: Tensor, cache: None = None
    ) -> Tensor:
        """[B, S, H] -> [B, S, H] before the final norm; [1, M, H] if the plan keeps only M queries.

        `positions` is [B, S] or [A, B, S]. The attention plan holds the keys of earlier steps or tokens, so there is no
        other cache.
        """
        shape = hidden.shape
        rows, embeds = hidden.flatten(0, 1), embeds.flatten(0, 1).to(hidden.dtype)
        cos, sin = self.rotary(positions.flatten(-2))
        angles = cos.unsqueeze(1), sin.unsqueeze(1)
        for layer in self.layers:
            rows = layer(embeds, rows, angles, attention)
        return rows.view(shape) if rows.shape[0] == shape[0] * shape[1] else rows.unsqueeze(0)

    def feedback(self, hidden: Tensor) -> Tensor:
        """What the next step reads in place of the projected states."""
        if self.norm_output:
            normed: Tensor = self.norm(hidden)
            return normed
        return hidden

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """[B, S, H] backbone output -> [B, S, D] over the draft vocabulary."""
        logits: Tensor = self.lm_head(self.norm(hidden))
        return logits
