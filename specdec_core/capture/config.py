"""The keys of `[cache]` when `name = "memory"`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from specdec_core.config.run import Dtype


class MemoryCacheConfig(BaseModel):
    """Options of the in-memory feature cache."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_gb: Annotated[float, Field(gt=0)] = Field(
        4.0, description="Memory for features, in GB (10^9 bytes). Rows beyond it are computed in every epoch."
    )
    dtype: Dtype | None = Field(None, description="Floating-point type of what is kept. None: the target's own.")
