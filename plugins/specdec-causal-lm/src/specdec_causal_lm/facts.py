"""What the families served here leave unsaid in their configs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from specdec_core.config.run import TargetSection
from specdec_core.target import hf_facts
from specdec_core.target.base import TargetFacts

BIASED_QKV = frozenset({"qwen2", "qwen2_moe", "phi"})


def read_facts(target: TargetSection, config: Any, generation: Any, tokenizer: Any) -> TargetFacts:
    """The core's, and the attention biases of model types whose configs do not mention them."""
    facts = hf_facts.read_facts(target, config, generation, tokenizer)
    return replace(facts, attention_bias=facts.attention_bias or facts.model_type in BIASED_QKV)
