"""What this distribution provides."""

from specdec_core.registry.hooks import hookimpl
from specdec_core.registry.specs import PluginSpec


@hookimpl
def specdec_plugins() -> list[PluginSpec]:
    """One backbone."""
    return [
        PluginSpec(
            kind="backbone",
            name="qwen-vl",
            summary="Qwen2-VL, Qwen2.5-VL and Qwen3-VL of any size: text, images, videos",
            implementation="specdec_qwen_vl.backbone:QwenVLBackbone",
            config="specdec_qwen_vl.config:QwenVLConfig",
        )
    ]
