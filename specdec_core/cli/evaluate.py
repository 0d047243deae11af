"""`specdec eval`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specdec_core.cli.common import OverridesArgument, progress_bar
from specdec_core.errors import UserError

if TYPE_CHECKING:
    from specdec_core.evaluate.prompts import PromptPack

SECONDS_BETWEEN_LINES = 10.0

RunArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        show_default=False,
        help="A run directory or a checkpoint, or CONFIG.toml for an algorithm that needs no training.",
    ),
]


def evaluate(
    run: RunArgument,
    overrides: OverridesArgument = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="JSONL of prompts in place of eval.prompts; may be repeated. "
            "package:NAME/FILE is a file within an installed Python package.",
        ),
    ] = None,
    k: Annotated[
        str | None,
        typer.Option(
            "-k",
            "--k",
            metavar="K,...",
            help="Draft tokens per forward of the target (of a tree: its depth); several: a sweep.",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens generated per prompt: eval.max_new_tokens.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(metavar="T", help="0 is greedy: eval.temperature.")] = None,
    max_prompts: Annotated[
        int | None, typer.Option(metavar="N", help="Prompts of each file, spread evenly over it: eval.max_prompts.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Measure a draft: acceptance length, and speed against the target alone and eval.baselines in the same run.

    RUN may also be the config of an algorithm that needs no training. What is not given here is taken from the [eval]
    section. Greedy output is compared with the target's own,
    token by token; a difference that is no tie of logits ends in an error.

    Example: specdec eval runs/demo --k 2,3,4,5
    """
    ks = _parse_ks(k)

    from rich.console import Console

    from specdec_core.checkpoint.open import open_for_decoding
    from specdec_core.evaluate import report
    from specdec_core.evaluate.run import evaluate_run
    from specdec_core.registry.registry import Registry

    options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "max_prompts": max_prompts}
    given = [f"eval.{key}={value}" for key, value in options.items() if value is not None]
    opened = open_for_decoding(run, Registry.discover(), overrides=[*(overrides or ()), *given])
    with _progress() as on_progress:
        measured = evaluate_run(
            opened, packs=_packs(prompts) if prompts else None, num_draft_tokens=ks, on_progress=on_progress
        )
    if as_json:
        typer.echo(json.dumps(report.as_json(measured), indent=2, ensure_ascii=False))
    else:
        Console().print(report.render(measured), highlight=False)
    measured.evaluation.check()


def _parse_ks(k: str | None) -> list[int]:
    """The values of --k; none if it was not given."""
    values = k.split(",") if k else []
    if not all(value.strip().isdecimal() and int(value) > 0 for value in values):
        raise UserError(f"--k is {k}; it takes whole numbers from 1 up, such as 4 or 2,3,4")
    return [int(value) for value in values]


def _packs(files: list[str]) -> list[PromptPack]:
    from specdec_core.evaluate.config import JsonlPromptsConfig
    from specdec_core.evaluate.prompts import JsonlPrompts

    return [JsonlPrompts(JsonlPromptsConfig(path=file)) for file in files]


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """On stderr: a bar on a terminal, now and then a line elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    with progress_bar("decoding", console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("decoding", total=None)
        last = time.monotonic()

        def on_progress(done: int, total: int) -> None:
            nonlocal last
            bar.update(task, completed=done, total=total)
            if not console.is_terminal and time.monotonic() - last > SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                typer.echo(f"decoded {done} of {total}", err=True)

        yield on_progress
