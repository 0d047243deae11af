"""What the core itself provides, through the same entry point as any other distribution."""

from specdec_core.registry.hooks import hookimpl
from specdec_core.registry.specs import PluginSpec


@hookimpl
def specdec_plugins() -> list[PluginSpec]:
    """One plain implementation of each kind that a run cannot do without, and two trackers."""
    return [
        PluginSpec(
            kind="engine",
            name="torch",
            summary="One process, AdamW, CPU or one GPU",
            implementation="specdec_core.engine.torch_engine:TorchEngine",
            config="specdec_core.engine.config:TorchEngineConfig",
        ),
        PluginSpec(
            kind="exporter",
            name="hf",
            summary="A Hugging Face style directory: config.json and safetensors",
            implementation="specdec_core.export.hf:HFExporter",
        ),
        PluginSpec(
            kind="prompts",
            name="jsonl",
            summary="Prompts from a JSONL file",
            implementation="specdec_core.evaluate.prompts:JsonlPrompts",
            config="specdec_core.evaluate.config:JsonlPromptsConfig",
        ),
        PluginSpec(
            kind="cache",
            name="memory",
            summary="The target's features, kept in memory",
            implementation="specdec_core.capture.memory:MemoryCache",
            config="specdec_core.capture.config:MemoryCacheConfig",
        ),
        PluginSpec(
            kind="logger",
            name="tensorboard",
            summary="Metrics to TensorBoard",
            implementation="specdec_core.train.trackers:TensorBoardLogger",
            config="specdec_core.train.tracker_config:TensorBoardConfig",
        ),
        PluginSpec(
            kind="logger",
            name="wandb",
            summary="Metrics to Weights & Biases",
            implementation="specdec_core.train.trackers:WandbLogger",
            config="specdec_core.train.tracker_config:WandbConfig",
        ),
    ]
