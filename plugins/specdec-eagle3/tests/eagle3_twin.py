"""EAGLE-3 once more, from the paper's formulas: one slot, one document, one layer, float64, no tensor of the source."""

from __future__ import annotations

import torch
from torch import Tensor

from specdec_eagle3.model import Eagle3Draft


def chain(
    draft: Eagle3Draft,
    ids: Tensor,
    captured: Tensor,
    slot: int,
    steps: int,
    embeds: Tensor | None = None,
    positions: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits [K, D] and normed states [K, H] of the guesses that start at `slot` of a document.

    ids       [n] the document's tokens; `ids[slot + 1]` and later ones are what the guesses read
    captured  [n, k*H] the target's states side by side; only those up to `slot` are read
    embeds    [n, H] of the tokens; None embeds their ids
    positions [A, n] of the slots, whose axes the pairs of dimensions read section by section; None counts from 0
    """
    weights = {name: parameter.detach().double() for name, parameter in draft.named_parameters()}
    config, table = draft.config, draft.target.embed_rows().double()
    hidden, dim = config["hidden_size"], config["head_dim"]
    read = table[ids] if embeds is None else embeds.double()
    at = torch.arange(len(ids)).unsqueeze(0) if positions is None else positions
    sections = config["rope_parameters"].get("mrope_section", [dim // 2])
    axis = [min(number, len(at) - 1) for number, size in enumerate(sections) for _ in range(size)]
    turn = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    group = config["num_attention_heads"] // config["num_key_value_heads"]

    def normed(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean() + config["rms_norm_eps"]).sqrt() * weights[f"{name}.weight"]

    def layer(name: str, x: Tensor) -> Tensor:
        return weights[f"layers.0.{name}_proj.weight"] @ x

    def heads(name: str, x: Tensor, position: Tensor | None) -> Tensor:
        y = layer(f"self_attn.{name}", x).view(-1, dim)
        if position is None:
            return y
        pairs = torch.complex(*y.chunk(2, dim=1)) * torch.polar(torch.ones_like(turn), position * turn)
        return torch.cat([pairs.real, pairs.imag], dim=1)

    def project(x: Tensor) -> Tensor:
        parts = list(x.split(hidden))
        if config["fc_norm"]:
            parts = [normed(part, f"fc_norm.{i}") for i, part in enumerate(parts)]
        return weights["fc.weight"] @ torch.cat(parts)

    def inputs(after: int, g: Tensor) -> Tensor:
        own = [normed(read[after], "layers.0.input_layernorm"), normed(g, "layers.0.hidden_norm")]
        return torch.cat(own)

    seen = [(inputs(s + 1, project(captured[s].double())), at[axis, s]) for s in range(slot)]
    g, logits, states = project(captured[slot].double()), [], []
    for k in range(steps):
        x, position = inputs(slot + 1 + k, g), at[axis, slot] + k
        seen.append((x, position))
        query = heads("q", x, position)
        keys = torch.stack([heads("k", y, position) for y, position in seen])
        values = torch.stack([heads("v", y, None) for y, _ in seen])
        mixed = []
        for head in range(config["num_attention_heads"]):
            share = (keys[:, head // group] @ query[head] / dim**0.5).softmax(0)
            mixed.append(share @ values[:, head // group])
        residual = (normed(g, "layers.0.hidden_norm") if config["norm_before_residual"] else g) + layer(
            "self_attn.o", torch.cat(mixed)
        )
        y = normed(residual, "layers.0.post_attention_layernorm")
        gate = layer("mlp.gate", y)
        out = residual + layer("mlp.down", gate * gate.sigmoid() * layer("mlp.up", y))
        states.append(normed(out, "norm"))
        logits.append(weights["lm_head.weight"] @ states[-1])
        g = states[-1] if config["norm_output"] else out
    return torch.stack(logits), torch.stack(states)
