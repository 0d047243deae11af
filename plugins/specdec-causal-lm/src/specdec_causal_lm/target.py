"""A loaded decoder-only text model, and where families differ."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from specdec_core.capture.features import CapturePlan
from specdec_core.data.batch import Batch
from specdec_core.errors import UserError
from specdec_core.target.hf import HFTarget

FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")


class CausalLMTarget(HFTarget):
    """An `AutoModelForCausalLM` with its tokenizer."""

    def norm(self) -> nn.Module:
        """The norm after the last layer, under the names that families give it."""
        decoder = self.decoder()
        return cast(nn.Module, next(getattr(decoder, name) for name in FINAL_NORMS if hasattr(decoder, name)))

    def layer_state(self, index: int) -> dict[str, Tensor]:
        """A copy of decoder layer `index`'s weights, projections that a family fuses taken apart."""
        state = super().layer_state(index)
        facts = self.facts
        if (fused := state.pop("self_attn.qkv_proj.weight", None)) is not None:
            key_value = facts.num_key_value_heads * facts.head_dim
            parts = torch.split(fused, [facts.num_attention_heads * facts.head_dim, key_value, key_value])
            state |= {f"self_attn.{name}_proj.weight": part.clone() for name, part in zip("qkv", parts, strict=True)}
        if (fused := state.pop("mlp.gate_up_proj.weight", None)) is not None:
            gate, up = fused.chunk(2)
            state |= {"mlp.gate_proj.weight": gate.clone(), "mlp.up_proj.weight": up.clone()}
        return state

    @torch.no_grad()
    def check(self) -> None:
        """Compare two tokens' logits with the model's own, so that a family that differs is refused, not mistaken."""
        refused = (
            f"{self.facts.name_or_path}: backbone causal-lm does not know the model type {self.facts.model_type!r}"
        )
        ids = torch.arange(2, device=self.device)[None]
        batch = Batch(ids, ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids))
        try:
            features = self.capture(batch, CapturePlan(layers=(self.facts.num_layers,), last_hidden=True))
            own = self.logits(cast(Tensor, features.last_hidden))
            normed = self.norm()(features.hidden[self.facts.num_layers])
        except (AttributeError, StopIteration, TypeError, KeyError) as error:
            raise UserError(f"{refused} ({error})") from error
        tolerance = 1e-4 if own.dtype == torch.float32 else 1e-2
        theirs = self.model(input_ids=ids, position_ids=ids, use_cache=False).logits
        scale = theirs.abs().max()
        if (own - theirs).abs().max() > tolerance * scale or not torch.allclose(
            normed, cast(Tensor, features.last_hidden), rtol=tolerance, atol=tolerance
        ):
            raise UserError(f"{refused}: it does something of its own between the last layer and its logits")
