"""What several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

    from specdec_core.registry.registry import Registry
    from specdec_core.registry.resolve import ResolvedRun

ConfigArgument = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG.toml",
        show_default=False,
        help="The run config. Paths in it are relative to the working directory.",
    ),
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SECTION.KEY=VALUE",
        show_default=False,
        help="Replace keys of the config, such as train.lr=3e-4 or 'data.train=[\"a.jsonl\"]'. "
        "Values are TOML; a bare word is a string.",
    ),
]


def load_run(config: Path, overrides: Sequence[str] | None = None) -> tuple[ResolvedRun, Registry]:
    """Read a config, set the overrides, find and check the plugins. Raises UserErrors naming every problem."""
    from specdec_core.registry.registry import Registry
    from specdec_core.registry.resolve import resolve_file

    registry = Registry.discover()
    return resolve_file(config, list(overrides or ()), registry), registry


def progress_bar(what: str, **options: Any) -> Progress:
    """A bar with the number done, the time taken and the time left; `options` are rich's."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(what), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TextColumn("left"))
    return Progress(*columns, TimeRemainingColumn(), **options)
