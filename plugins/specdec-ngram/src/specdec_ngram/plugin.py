"""What this distribution provides."""

from specdec_core.registry.hooks import hookimpl
from specdec_core.registry.specs import PluginSpec


@hookimpl
def specdec_plugins() -> list[PluginSpec]:
    """One algorithm."""
    return [
        PluginSpec(
            kind="algorithm",
            name="ngram",
            summary="Prompt lookup: what followed the text's last few tokens when they last occurred; no training",
            implementation="specdec_ngram.algorithm:Ngram",
            config="specdec_ngram.config:NgramConfig",
        )
    ]
