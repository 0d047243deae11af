"""A checkpoint to an exported draft, and to its target if the run trained it."""

from __future__ import annotations

from pathlib import Path

from specdec_core.checkpoint import store
from specdec_core.checkpoint.open import is_config, open_run, read_untrained
from specdec_core.errors import UserError
from specdec_core.export.base import Exporter, Provenance
from specdec_core.export.target import TARGET, write_target
from specdec_core.registry.registry import Registry


def export_run(run: Path, out: Path, registry: Registry, *, exporter: str | None = None, best: bool = False) -> int:
    """Export a run's newest or best checkpoint, or the checkpoint that `run` is. Returns the step of its weights.

    A target that the run trained goes to `out/target`. `exporter` replaces the run's own, with default options. Raises
    UserError if there is no such checkpoint or exporter, and for what the exporter refuses; an algorithm without
    training has nothing to export.
    """
    if is_config(run):
        name = read_untrained(run, registry)[0].algorithm.spec.name
        raise UserError(f'{run}: algorithm "{name}" has no draft, so there is nothing to export; it is used as it is')
    if best:
        found = store.best(run)
        if found is None:
            raise UserError(f"{run} has no best checkpoint; export its newest one, without --best")
        run = found
    overrides = [f"export={{name='{exporter}'}}"] if exporter else []
    opened = open_run(run, registry, overrides=overrides, draft_dtype="float32")
    writer: Exporter = opened.resolved.export.load()
    exported = opened.algorithm.export(opened.draft, opened.target.facts)
    lock = opened.resolved.lock.model_dump(mode="json")
    provenance = Provenance(opened.resolved.table, lock, opened.step, opened.trained_target)
    writer.write(exported, out, provenance)
    if opened.trained_target:
        write_target(opened.backbone, opened.target, out / TARGET, provenance)
    return opened.step
