"""Keys of `[backbone]` that many families of transformers models share. This module must not import torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Pixels = Annotated[int, Field(ge=1)]


class HFOptions(BaseModel):
    """What every such backbone takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokenizer: str | None = Field(
        None,
        description="A local directory or Hub id to take the tokenizer from, and what reads images where the target "
        "reads them. None: the target's own.",
    )


class HFVisionOptions(HFOptions):
    """What a backbone of vision-language targets takes."""

    draft_embeds: Literal["merged", "placeholders"] = Field(
        "merged",
        description="What a draft reads where an image stands: merged, the image's own embeddings, as SGLang feeds "
        "them; placeholders, the embedding of the placeholder's id, as vLLM does. Train as you will serve.",
    )
    min_pixels: Pixels | None = Field(
        None, description="Images of fewer pixels are enlarged to this. None: as the target's files say."
    )
    max_pixels: Pixels | None = Field(
        None, description="Images of more pixels are shrunk to this. None: as the target's files say."
    )

    @model_validator(mode="after")
    def _in_order(self) -> HFVisionOptions:
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels = {self.min_pixels} is more than max_pixels = {self.max_pixels}")
        return self
