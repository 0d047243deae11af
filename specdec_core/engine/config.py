"""Options of the engine `torch`. Imports no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class TorchEngineConfig(BaseModel):
    """`[engine]` with `name = "torch"`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = Field(
        "auto", description="auto, cpu, cuda or cuda:N. auto takes the first CUDA device, or else the CPU."
    )
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="CPU threads of one operation. None leaves torch's own choice."
    )
