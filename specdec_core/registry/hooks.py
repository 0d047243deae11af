"""The hooks that a plugin may implement. Pluggy checks every signature against this module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pluggy

from specdec_core.registry.specs import PluginSpec

if TYPE_CHECKING:
    from pathlib import Path

    from specdec_core.train.run import RunInfo

PROJECT = "specdec"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Hooks:
    """Discovery (`specdec_plugins`) and the events of a training run. No hook sits inside the step."""

    @hookspec
    def specdec_plugins(self) -> Iterable[PluginSpec]:
        """Return the specs of everything that this distribution provides. Must import no torch."""
        raise NotImplementedError

    @hookspec
    def specdec_run_started(self, run: RunInfo) -> None:
        """A run begins or resumes; its directory exists and holds the config and the lock."""

    @hookspec
    def specdec_step_finished(self, run: RunInfo, step: int, metrics: Mapping[str, float]) -> None:
        """An optimizer step that is logged (`train.log_every`) has ended. Called on rank 0 only."""

    @hookspec
    def specdec_checkpoint_saved(self, run: RunInfo, step: int, path: Path) -> None:
        """A complete checkpoint stands at `path`."""

    @hookspec
    def specdec_run_finished(self, run: RunInfo, status: str) -> None:
        """The run has ended: `status` is "completed", "interrupted" or "failed"."""
