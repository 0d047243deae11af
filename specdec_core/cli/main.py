"""The `specdec` command. A command imports what it needs when it runs, so that the others stay quick."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

import specdec_core
from specdec_core.cli import check, config, data, evaluate, export, generate, plugins, train
from specdec_core.cli.errors import Commands
from specdec_core.registry import ENVIRONMENT_VARIABLE

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("eval", short_help="Measure a draft: acceptance length and speed.")(evaluate.evaluate)
app.command("generate")(generate.generate)
app.command("export")(export.export)
app.add_typer(data.app, name="data")
app.add_typer(config.app, name="config")
plugins.app.command("check", short_help="Test an installed plugin against its contract.")(check.check)
app.add_typer(plugins.app, name="plugins")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"specdec {specdec_core.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    registry: Annotated[
        Path | None,
        typer.Option(
            "--registry",
            metavar="FILE",
            envvar=ENVIRONMENT_VARIABLE,
            help="A registry.toml read after the shipped one, the user's and the working directory's.",
        ),
    ] = None,
) -> None:
    """Train, measure and ship drafts for speculative decoding.

    A small model, the draft, proposes tokens; the large model, the target, verifies several of them in one
    forward pass and so gives the same text sooner. One TOML file describes a run; algorithms and model families
    are plugins, which pip installs. The least that the file says: path in [target], name in [backbone], name in
    [algorithm], train in [data].

    Start with: specdec plugins list, then specdec config check run.toml, then specdec train run.toml
    """
    if registry is not None:
        # In the environment, so that processes which a command starts see the same plugins.
        os.environ[ENVIRONMENT_VARIABLE] = str(registry.absolute())


def main() -> None:
    """The entry point of the `specdec` script."""
    app()
