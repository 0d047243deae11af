"""What this distribution provides."""

from specdec_core.registry.hooks import hookimpl
from specdec_core.registry.specs import PluginSpec


@hookimpl
def specdec_plugins() -> list[PluginSpec]:
    """One backbone."""
    return [
        PluginSpec(
            kind="backbone",
            name="hunyuan-vl",
            summary="HunyuanVL models such as HunyuanOCR: text and images",
            implementation="specdec_hunyuan_vl.backbone:HunyuanVLBackbone",
            config="specdec_hunyuan_vl.config:HunyuanVLConfig",
        )
    ]
