"""What this distribution provides. Every specdec command imports this module, so it must not import torch."""

from specdec_core.registry.hooks import hookimpl
from specdec_core.registry.specs import PluginSpec


@hookimpl
def specdec_plugins() -> list[PluginSpec]:
    """One algorithm."""
    return [
        PluginSpec(
            kind="algorithm",
            name="hydra",
            summary="Hydra: heads over the target's last hidden state that read the tokens guessed so far",
            implementation="specdec_hydra.algorithm:Hydra",
            config="specdec_hydra.config:HydraConfig",
        )
    ]
