"""What this distribution provides."""

from specdec_core.registry.hooks import hookimpl
from specdec_core.registry.specs import PluginSpec


@hookimpl
def specdec_plugins() -> list[PluginSpec]:
    """One algorithm."""
    return [
        PluginSpec(
            kind="algorithm",
            name="eagle3",
            summary="EAGLE-3: a decoder layer over three of the target's hidden states, trained by training-time test",
            implementation="specdec_eagle3.algorithm:Eagle3",
            config="specdec_eagle3.config:Eagle3Config",
        )
    ]
