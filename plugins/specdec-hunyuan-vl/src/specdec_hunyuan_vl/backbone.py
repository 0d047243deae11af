"""The `hunyuan-vl` backbone: where the family differs from what the core expects of a vision-language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from specdec_core.config.run import TargetSection
from specdec_core.data.media import MediumKind
from specdec_core.target.base import TargetFacts
from specdec_core.target.hf_media import HFMediaProcessor
from specdec_core.target.hf_vision import HFVisionBackbone

OF_ALPHA = frozenset({"alpha", "beta_fast", "beta_slow", "factor", "mscale", "mscale_all_dim", "type"})
"""Keys that mean nothing once the fixed `alpha` is in the base of the frequencies."""


class HunyuanVLMedia(HFMediaProcessor):
    """The family's processor takes a placeholder between its start and end tokens only."""

    def context(self, kind: MediumKind) -> str:
        """The placeholder between its start and end tokens."""
        return f"{self.processor.image_start_token}{super().context(kind)}{self.processor.image_end_token}"


class HunyuanVLBackbone(HFVisionBackbone):
    """Made with a `HunyuanVLConfig`."""

    name = "hunyuan-vl"
    model_types = ("hunyuan_vl",)
    media_type = HunyuanVLMedia

    def read_facts(self, target: TargetSection, config: Any, generation: Any, tokenizer: Any) -> TargetFacts:
        """What the configs say, the rotary embedding in the core's words (see `TargetFacts`)."""
        facts = super().read_facts(target, config, generation, tokenizer)
        return replace(facts, rope_parameters=plain_rope(facts.rope_parameters, facts.head_dim))


def plain_rope(rope: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    """The same rotary embedding as one of the type `default`.

    The family stretches the base by a fixed `alpha` under the name of a dynamic type (transformers 5.23,
    `compute_ntk_alpha_rope_parameters`), and lays its sections over the doubled frequencies.
    """
    found = {**rope, "mrope_layout": "doubled"}
    if found["rope_type"] != "dynamic" or not found.get("alpha"):
        return found
    found["rope_theta"] *= found["alpha"] ** (head_dim / (head_dim - 2))
    found["rope_type"] = "default"
    return {key: value for key, value in found.items() if key not in OF_ALPHA}
