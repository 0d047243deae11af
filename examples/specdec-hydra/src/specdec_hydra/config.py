"""The `[algorithm]` options of Hydra. This module must not import torch."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class HydraConfig(BaseModel):
    """Validated before anything is loaded; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    heads: Annotated[int, Field(ge=1, le=16)] = Field(4, description="Heads; head i predicts the token 2 + i ahead.")
