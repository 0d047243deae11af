"""What a running job tells its observers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from specdec_core.config.run import RunConfig


@dataclass(frozen=True)
class RunInfo:
    """A training run, as the event hooks see it."""

    name: str
    directory: Path
    config: RunConfig
    start_step: int
    total_steps: int


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, and its checkpoint is saved."""
