"""`specdec train`."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from specdec_core.cli.common import ConfigArgument, OverridesArgument, load_run
from specdec_core.errors import NothingToTrain, UserError


def train(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last complete checkpoint in train.output_dir.")
    ] = False,
) -> None:
    """Train a draft as a config says.

    Everything is a key of the config; there are no other flags. `specdec config show` lists all keys.

    Example: specdec train run.toml train.lr=3e-4 data.max_length=1024

    A run that was interrupted goes on with the same losses: specdec train run.toml --resume
    """
    run, registry = load_run(config, overrides)

    from specdec_core.train.trainer import run_training

    try:
        run_training(run, registry, resume)
    except NothingToTrain as error:
        command = shlex.join(["specdec", "eval", str(config), *(overrides or ())])
        raise UserError(f"{config}: {error}: `{command}`") from error
