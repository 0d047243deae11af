"""The `[algorithm]` options of `ngram`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator


class NgramConfig(BaseModel):
    """Which endings of the text are looked up in it, the longest first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    longest: Annotated[int, Field(ge=1, le=32)] = Field(3, description="Tokens of the longest ending looked up.")
    shortest: Annotated[int, Field(ge=1, le=32)] = Field(
        1, description="Tokens of the shortest. A larger one proposes less often, and is right more often."
    )

    @model_validator(mode="after")
    def _in_order(self) -> NgramConfig:
        if self.shortest > self.longest:
            raise ValueError(f"shortest is {self.shortest} and longest {self.longest}; shortest may not be the larger")
        return self
