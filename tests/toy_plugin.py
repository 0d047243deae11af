"""A distribution `specdec-toy` with the smallest algorithms that train; its module imports no torch."""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from specdec_core.registry.hooks import hookimpl
from specdec_core.registry.specs import PluginSpec


class ToyConfig(BaseModel):
    """`poison` makes the loss of the n-th training step, counted from 1, not a number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dropout: float = 0.1
    poison: int | None = None
    seconds: float = 0.0


class JointConfig(BaseModel):
    """A target that learns at `target_lr` from the share `starts_at` of the run on; `weight` is the head's loss's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target_lr: float = 3e-3
    starts_at: float = 0.5
    weight: float = 0.2
    seconds: float = 0.0


class UntrainedConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    most: int = 8


@hookimpl
def specdec_plugins() -> list[PluginSpec]:
    return [
        PluginSpec("algorithm", "toy", "For tests", "toy_draft:Toy", "toy_plugin:ToyConfig"),
        PluginSpec("algorithm", "untrained", "For tests", "toy_draft:Untrained", "toy_plugin:UntrainedConfig"),
        PluginSpec("algorithm", "stray", "For tests", "toy_draft:Stray"),
        PluginSpec("algorithm", "joint", "For tests", "toy_joint:Joint", "toy_plugin:JointConfig"),
    ]


def install(directory: Path, version: str = "0.1") -> Path:
    """Make `directory` an installed copy of the distribution, to be put on the path."""
    here = Path(__file__).parent
    for name in ("toy_plugin.py", "toy_draft.py", "toy_joint.py"):
        shutil.copy(here / name, directory)
    for old in directory.glob("*.dist-info"):
        shutil.rmtree(old)
    info = directory / f"specdec_toy-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: specdec-toy\nVersion: {version}\n")
    (info / "entry_points.txt").write_text("[specdec.plugins]\ntoy = toy_plugin\n")
    return directory
