"""The run config's shape. Every key that the core reads is declared here, with its meaning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Dtype = Literal["float32", "bfloat16", "float16"]
Decay = Annotated[float, Field(ge=0, lt=1)]
# What torch's generators take.
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Section(BaseModel):
    """A section of the run config: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PluginSection(BaseModel):
    """A section served by a plugin: `name` chooses it, all other keys are its own.

    The plugin's keys are validated by the plugin's own model when the name is resolved. In a config the
    name alone may stand for the table: `engine = "torch"`.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str = Field(description="Name of the plugin that serves this section.")

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def options(self) -> dict[str, Any]:
        """The plugin's own keys, not yet validated."""
        return dict(self.__pydantic_extra__ or {})


class TargetSection(Section):
    """The model whose output is to be reproduced."""

    path: str = Field(
        min_length=1,
        description="A local directory, a .gguf file, a Hub id such as org/name, or package:NAME/FILE in an installed "
        "package.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a Hub id.")
    dtype: Dtype = Field("float32", description="Floating-point type the target is loaded in.")
    attention: str = Field("sdpa", description="Attention implementation of the target's model.")
    trust_remote_code: bool = Field(
        False, description="Run Python code that the target's repository ships. Read it first."
    )


class DraftSection(Section):
    """The small model that proposes tokens."""

    config: Path | None = Field(None, description="HF-style draft JSON. None derives it from the target.")
    init: Literal["fitted", "target", "random"] = Field(
        "target",
        description="Where the weights start: copied from the target where shapes allow; copied, then fitted to a "
        "sample of the training data in closed form, if the algorithm can; or random.",
    )
    fit_tokens: Annotated[int, Field(ge=1)] = Field(131072, description='Tokens that init = "fitted" reads.')
    init_from: Path | None = Field(
        None, description="A run, a checkpoint or an exported draft to take weights from, in place of init."
    )
    vocab_size: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Size of the draft vocabulary. None keeps the target's whole vocabulary."
    )


class DataSection(Section):
    """Conversations to train on."""

    train: tuple[Path, ...] = Field(
        (), description="JSONL files (also .jsonl.gz) of conversations. Training needs one."
    )
    validation: tuple[Path, ...] = Field((), description="JSONL files for a held-out loss. May be empty.")
    max_length: Annotated[int, Field(ge=8)] = Field(
        2048, description="Tokens per packed row; longer conversations are cut."
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Train on only the first conversations that fit into this many tokens. None: on all."
    )
    packing: bool = Field(True, description="Pack several conversations into a row, with document ids.")
    on_error: Literal["error", "skip"] = Field(
        "error", description="A malformed line stops the run, or is skipped, and counted in the data's summary."
    )
    images: Literal["strict", "lenient"] = Field(
        "strict",
        description="An image that is in CMYK, animated or wrongly named makes its line malformed, or is converted, "
        "stands for its first frame, is read as what it is.",
    )
    max_image_pixels: Annotated[int, Field(ge=1, le=178_956_970)] = Field(
        89_478_485, description="An image with more pixels makes its line malformed; it is not decoded."
    )
    num_proc: Annotated[int, Field(ge=1)] = Field(1, description="Processes that tokenise.")
    cache_dir: Path | None = Field(None, description="Where tokenised data is kept. None: the HF datasets cache.")
    chat_template: Path | None = Field(None, description="A Jinja chat template in place of the tokenizer's own.")


class TrainSection(Section):
    """The optimisation."""

    output_dir: Path = Field(Path("runs/run"), description="The run directory.")
    run_name: str | None = Field(None, description="Shown in logs and trackers. None: the run directory's name.")
    epochs: Annotated[float, Field(gt=0, le=1e6)] = Field(1.0, description="Passes over the data.")
    max_steps: Annotated[int, Field(ge=1)] | None = Field(None, description="Stop after this many optimizer steps.")
    batch_size: Annotated[int, Field(ge=1)] = Field(1, description="Packed rows per micro-batch and process.")
    accumulation: Annotated[int, Field(ge=1)] = Field(1, description="Micro-batches per optimizer step.")
    lr: Annotated[float, Field(gt=0)] = Field(1e-4, description="Peak learning rate.")
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="Final learning rate / peak.")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="Decay after warm-up.")
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = Field(0.03, description="Share of steps that warm up.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="AdamW weight decay, of matrices only.")
    betas: tuple[Decay, Decay] = Field((0.9, 0.95), description="AdamW betas.")
    eps: Annotated[float, Field(gt=0)] = Field(1e-8, description="AdamW epsilon.")
    max_grad_norm: Annotated[float, Field(gt=0)] | None = Field(
        0.5, description="Clip the global gradient norm here. None does not clip."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="The draft's type; bfloat16 keeps float32 master weights. A target that is trained keeps its type.",
    )
    seed: Seed = Field(0, description="Seed of weights, data order and sampling.")
    log_every: Annotated[int, Field(ge=1)] = Field(1, description="Steps between lines of metrics.jsonl.")
    save_every: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Steps between checkpoints. None saves at the end only."
    )
    validate_every: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Steps between validations, if data.validation is set. None: with each checkpoint."
    )
    keep_last: Annotated[int, Field(ge=1)] = Field(2, description="Checkpoints kept, besides the best.")


class EvalSection(Section):
    """How drafts are measured."""

    prompts: tuple[PluginSection, ...] = Field(
        (), description="Prompt packs: tables [[eval.prompts]], each with the name of its plugin."
    )
    baselines: tuple[PluginSection, ...] = Field(
        (), description="Algorithms without training that are measured beside the draft; each names its plugin."
    )
    max_prompts: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Prompts taken of each pack, spread evenly over it."
    )
    num_draft_tokens: Annotated[int, Field(ge=1)] = Field(
        4, description="Tokens drafted per target forward (k); of a tree its depth, whatever its number of nodes."
    )
    max_new_tokens: Annotated[int, Field(ge=1)] = Field(128, description="Tokens generated per prompt.")
    temperature: Annotated[float, Field(ge=0)] = Field(0.0, description="0 is greedy.")
    seed: Seed = Field(0, description="Seed of sampling.")
    draft_dtype: Literal["float32", "bfloat16", "int8"] | None = Field(
        None,
        description="The draft's type while it proposes; int8 rounds its linear layers, on a CPU. None: train.dtype.",
    )


class RunConfig(Section):
    """One run: what `specdec train CONFIG.toml` reads."""

    target: TargetSection = Field(description="The model whose output is to be reproduced: [target] with a path.")
    backbone: PluginSection = Field(description="How the target is loaded: [backbone] with the name of a plugin.")
    algorithm: PluginSection = Field(description="How the draft works: [algorithm] with the name of a plugin.")
    draft: DraftSection = DraftSection()
    data: DataSection = DataSection()
    train: TrainSection = TrainSection()
    engine: PluginSection = Field(PluginSection(name="torch"), description="What runs the step.")
    cache: PluginSection | None = Field(None, description="Feature cache. None computes features in each step.")
    eval: EvalSection = EvalSection()
    export: PluginSection = Field(PluginSection(name="hf"), description="What writes the draft for others to load.")
    loggers: tuple[PluginSection, ...] = Field((), description="Trackers told of every logged step.")


# Which kind of plugin serves which section, and which list of sections.
PLUGIN_SECTIONS: Mapping[str, str] = {
    "backbone": "backbone",
    "algorithm": "algorithm",
    "engine": "engine",
    "cache": "cache",
    "export": "exporter",
}
PLUGIN_LISTS: Mapping[str, str] = {"eval.prompts": "prompts", "eval.baselines": "algorithm", "loggers": "logger"}
