"""The keys of `[backbone]` when `name = "causal-lm"`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from specdec_core.target.hf_options import HFOptions


class CausalLMConfig(HFOptions):
    """Options of the `causal-lm` backbone. All of them have sound defaults."""

    gguf_file: str | None = Field(
        None, description="The GGUF file to read where target.path (a directory or Hub id) holds several."
    )
    cache_dir: Path | None = Field(
        None, description="Where weights converted from GGUF are kept. None: the user's cache directory."
    )
