"""What this distribution provides."""

from specdec_core.registry.hooks import hookimpl
from specdec_core.registry.specs import PluginSpec


@hookimpl
def specdec_plugins() -> list[PluginSpec]:
    """One backbone."""
    return [
        PluginSpec(
            kind="backbone",
            name="causal-lm",
            summary="Any Hugging Face decoder-only text model (Llama, Qwen2, Qwen3, Mistral, Gemma, ...)",
            implementation="specdec_causal_lm.backbone:CausalLMBackbone",
            config="specdec_causal_lm.config:CausalLMConfig",
        )
    ]
