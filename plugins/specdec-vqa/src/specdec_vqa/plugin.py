"""What this distribution provides."""

from specdec_core.registry.hooks import hookimpl
from specdec_core.registry.specs import PluginSpec


@hookimpl
def specdec_plugins() -> list[PluginSpec]:
    """Two prompt packs."""
    return [
        PluginSpec(
            kind="prompts",
            name="easy-vqa",
            summary="Questions about simple shapes, from the Python package easy-vqa",
            implementation="specdec_vqa.easy:EasyVqaPrompts",
            config="specdec_vqa.config:EasyVqaConfig",
        ),
        PluginSpec(
            kind="prompts",
            name="hub-vqa",
            summary="Questions about images from a dataset of the Hub or on disk: TextVQA, MMMU, MMStar, …",
            implementation="specdec_vqa.hub:HubVqaPrompts",
            config="specdec_vqa.config:HubVqaConfig",
        ),
    ]
