"""Trackers: observers of a run that send its metrics elsewhere. Both are told through the event hooks."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from typing import Any

from specdec_core.errors import UserError
from specdec_core.registry.hooks import hookimpl
from specdec_core.train.run import RunInfo
from specdec_core.train.tracker_config import TensorBoardConfig, WandbConfig


class TensorBoardLogger:
    """Writes every logged metric as a scalar to TensorBoard event files."""

    def __init__(self, options: TensorBoardConfig) -> None:
        self.options = options
        _require("tensorboard", "tensorboard")
        self._writer_class = _require("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._writer: Any = None

    @hookimpl
    def specdec_run_started(self, run: RunInfo) -> None:
        """Open the event file; on resume, hide what was written after the checkpoint."""
        directory = self.options.directory or run.directory / "tensorboard"
        self._writer = self._writer_class(str(directory), purge_step=run.start_step + 1)
        self._writer.add_text("config", f"```json\n{run.config.model_dump_json(indent=2)}\n```", run.start_step)

    @hookimpl
    def specdec_step_finished(self, step: int, metrics: Mapping[str, float]) -> None:
        """One scalar per metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    @hookimpl
    def specdec_run_finished(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()


class WandbLogger:
    """Sends every logged metric to Weights & Biases. A resumed run goes on in the same W&B run."""

    def __init__(self, options: WandbConfig) -> None:
        self.options = options
        self._wandb = _require("wandb", "wandb")
        self._run: Any = None

    @hookimpl
    def specdec_run_started(self, run: RunInfo) -> None:
        """Join the W&B run of this run directory, or make it."""
        self._run = self._wandb.init(
            project=self.options.project,
            entity=self.options.entity,
            name=self.options.run_name or run.name,
            id=hashlib.sha256(str(run.directory.resolve()).encode()).hexdigest()[:16],
            resume="allow",
            mode=self.options.mode,
            dir=str(run.directory),
            config=run.config.model_dump(mode="json"),
        )

    @hookimpl
    def specdec_step_finished(self, step: int, metrics: Mapping[str, float]) -> None:
        """All metrics of the step."""
        self._run.log(dict(metrics), step=step)

    @hookimpl
    def specdec_run_finished(self, status: str) -> None:
        """Close the W&B run; W&B shows any exit code but 0 as failed."""
        if self._run is not None:
            self._run.finish(exit_code=0 if status == "completed" else 1)


def _require(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f'loggers: "{extra}" needs a package that is not installed; run `pip install "specdec-core[{extra}]"`'
        ) from error
