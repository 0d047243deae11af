"""`specdec export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", show_default=False, help="A run directory, or one of its checkpoints."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", show_default=False, help="Where the draft goes.")],
    exporter: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="The exporter. Default: the run's own.")
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="The best checkpoint instead of the newest.")] = False,
) -> None:
    """Write a trained draft in a form that others load.

    What was written is read back and compared before it stands at DIR. A target that the run trained goes to
    DIR/target.

    Example: specdec export runs/run --out my-draft
    """
    from specdec_core.export.run import export_run
    from specdec_core.export.target import TARGET
    from specdec_core.registry.registry import Registry

    step = export_run(run, out, Registry.discover(), exporter=exporter, best=best)
    typer.echo(f"{out}: the draft of step {step}")
    if (out / TARGET).exists():
        typer.echo(f"{out / TARGET}: the target that was trained with it")
