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

    def finish_logits(self, logits: Tensor) -> Tensor:
        """Soft-capping, and the constant by which some families multiply or divide their logits."""
        config = self.text_config
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        return super().finish_logits(logits if scale == 1 else logits * scale)

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
        """Compare captured states of two small documents with the model's own logits of one of them.

        Raises UserError, so that a family that differs is refused and not mistaken.
        """
        refused = f"{self.facts.name_or_path}: backbone causal-lm cannot serve model type {self.facts.model_type!r}"
        count = self.facts.num_layers
        ids = torch.tensor([[0, 1, 0, 1]], device=self.device)
        batch = Batch(ids, ids, ids >= 0, torch.tensor([[0, 0, 1, 1]], device=self.device))
        try:
            features = self.capture(batch, CapturePlan(layers=(count,), last_hidden=True))
            assert features.last_hidden is not None
            found = [self.logits(hidden) for hidden in (features.last_hidden, self.norm()(features.hidden[count]))]
            theirs = self.model(input_ids=ids[:, :2], use_cache=False).logits.repeat(1, 2, 1)
        except (AttributeError, StopIteration, TypeError, KeyError) as error:
            raise UserError(f"{refused}: {error}") from error
        tolerance = (1e-4 if theirs.dtype == torch.float32 else 3e-2) * theirs.abs().max()
        if any((logits - theirs).abs().max() > tolerance for logits in found):
            raise UserError(f"{refused}: its logits are not its head applied to its final norm, document by document")
