"""The target that a run trained, as a model directory that others load."""

from __future__ import annotations

from pathlib import Path

from specdec_core.export.base import Provenance
from specdec_core.export.directory import check_finite, exported_directory
from specdec_core.target.base import Backbone, Target

TARGET = "target"
"""Its directory in a run directory, and in that of a draft exported from one."""


def write_target(backbone: Backbone, target: Target, out: Path, run: Provenance) -> None:
    """Write `out` whole or not at all, the weights in the target's own type; read it back and compare.

    Raises UserError if a weight is not finite, `out` holds something else, or the disk is full.
    """
    check_finite(dict(backbone.module(target).named_parameters()))
    with exported_directory(out, "target", run) as directory:
        backbone.save(target, directory)
