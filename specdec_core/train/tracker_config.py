"""Options of the trackers `tensorboard` and `wandb`. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TensorBoardConfig(BaseModel):
    """`[[loggers]]` with `name = "tensorboard"`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    directory: Path | None = Field(None, description="Where event files go. None: `tensorboard` in the run directory.")


class WandbConfig(BaseModel):
    """`[[loggers]]` with `name = "wandb"`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    project: str = Field("specdec", description="Weights & Biases project.")
    run_name: str | None = Field(None, description="Name of the run there. None: train.run_name.")
    entity: str | None = Field(None, description="Account or team. None: the one logged in.")
    mode: Literal["online", "offline"] = Field("online", description="offline writes to the run directory only.")
