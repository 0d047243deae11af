"""Options of the prompt packs."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

PLACEHOLDER = "{prompt}"


class JsonlPromptsConfig(BaseModel):
    """Which prompts to read from a JSONL file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(
        description="A .jsonl or .jsonl.gz file; package:NAME/FILE is a file within an installed Python package."
    )
    limit: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Take this many prompts, spread evenly over the file. None takes all."
    )
    field: str | None = Field(
        None, description="Key that holds the prompt. None: conversations, messages, turns, prompt or question."
    )
    template: str | None = Field(None, description="Text around the prompt, which stands where it says {prompt}.")
    category: str | None = Field(
        None,
        description="What the report calls these prompts. None: each line's own category, or else the file's name.",
    )

    @field_validator("template")
    @classmethod
    def _has_a_place_for_the_prompt(cls, value: str | None) -> str | None:
        if value is not None and PLACEHOLDER not in value:
            raise ValueError(f"must say {PLACEHOLDER} where the prompt goes")
        return value
