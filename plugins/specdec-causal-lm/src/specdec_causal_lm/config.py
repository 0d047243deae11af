"""The keys of `[backbone]` when `name = "causal-lm"`."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class CausalLMConfig(BaseModel):
    """Options of the `causal-lm` backbone. All of them have sound defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gguf_file: str | None = Field(
        None, description="The GGUF file to read where target.path (a directory or Hub id) holds several."
    )
    tokenizer: str | None = Field(
        None, description="A local directory or Hub id to take the tokenizer from. None: the target's own."
    )
    cache_dir: Path | None = Field(
        None, description="Where weights converted from GGUF are kept. None: the user's cache directory."
    )
