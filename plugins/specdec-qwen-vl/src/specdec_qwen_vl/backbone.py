"""The `qwen-vl` backbone: what the families leave unsaid in their configs. The core does the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from specdec_core.config.run import TargetSection
from specdec_core.target.base import TargetFacts
from specdec_core.target.hf_vision import HFVisionBackbone

# The families whose layers have biases on queries, keys and values, and those whose rotary dimensions take turns
# between the axes, whatever their configs say: transformers' models are written so (5.23, `modeling_*.py`).
BIASED_QKV = frozenset({"qwen2_vl", "qwen2_5_vl"})
INTERLEAVED = frozenset({"qwen3_vl", "qwen3_vl_moe"})


class QwenVLBackbone(HFVisionBackbone):
    """Made with a `QwenVLConfig`."""

    name = "qwen-vl"
    model_types = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")

    def read_facts(self, target: TargetSection, config: Any, generation: Any, tokenizer: Any) -> TargetFacts:
        """What the configs say, and which axis each rotary dimension reads (see `TargetFacts.rope_parameters`)."""
        facts = super().read_facts(target, config, generation, tokenizer)
        interleaved = config.model_type in INTERLEAVED
        rope = {
            # Where the config names no sections the model has its own.
            "mrope_section": [24, 20, 20] if interleaved else [16, 24, 24],
            **{key: value for key, value in facts.rope_parameters.items() if key != "type"},
            "mrope_interleaved": interleaved,
        }
        return replace(
            facts,
            rope_parameters=rope if interleaved else {k: v for k, v in rope.items() if k != "mrope_interleaved"},
            attention_bias=facts.attention_bias or config.model_type in BIASED_QKV,
        )
