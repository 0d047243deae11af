"""The `causal-lm` backbone: facts, tokenizer and weights of any decoder-only text model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from specdec_causal_lm.facts import read_facts
from specdec_causal_lm.location import locate
from specdec_causal_lm.target import CausalLMTarget
from specdec_core.config.run import TargetSection
from specdec_core.target.base import TargetFacts
from specdec_core.target.hf_backbone import HFBackbone
from specdec_core.target.hf_load import Location

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class CausalLMBackbone(HFBackbone):
    """Made with a `CausalLMConfig`."""

    name = "causal-lm"

    def locate(self, target: TargetSection) -> Location:
        """Where the target's files are; a GGUF file is converted the first time."""
        return locate(target, self.options)

    def read_facts(self, target: TargetSection, config: Any, generation: Any, tokenizer: Any) -> TargetFacts:
        """What the configs say, and what some families leave unsaid."""
        return read_facts(target, config, generation, tokenizer)

    def attention(self, target: TargetSection, config: Any) -> str:
        """`target.attention`, or eager where SDPA cannot do what the model does: cap the attention's logits."""
        capped = getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None)
        return "eager" if target.attention == "sdpa" and capped else target.attention

    def wrap(
        self,
        target: TargetSection,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: TargetFacts,
        device: str,
    ) -> CausalLMTarget:
        """The loaded model, once it has been found to be one that can be served."""
        loaded = CausalLMTarget(model, tokenizer, facts, device)
        loaded.check()
        return loaded
