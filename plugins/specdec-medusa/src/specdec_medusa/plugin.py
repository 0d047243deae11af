"""What this distribution provides."""

from specdec_core.registry.hooks import hookimpl
from specdec_core.registry.specs import PluginSpec


@hookimpl
def specdec_plugins() -> list[PluginSpec]:
    """One algorithm."""
    return [
        PluginSpec(
            kind="algorithm",
            name="medusa",
            summary="Medusa: residual heads over the target's last hidden state, each for a token further ahead",
            implementation="specdec_medusa.algorithm:Medusa",
            config="specdec_medusa.config:MedusaConfig",
        )
    ]
