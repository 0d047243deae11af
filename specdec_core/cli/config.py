"""`specdec config`: check, show, schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from specdec_core.cli.common import ConfigArgument, OverridesArgument, load_run
from specdec_core.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Check, complete or describe run configs.")


@app.command(short_help="Validate a config and list every error.")
def check(config: ConfigArgument, overrides: OverridesArgument = None) -> None:
    """Validate a config, the plugins' own keys included, and list every error at once.

    Example: specdec config check run.toml train.lr=3e-4

    A file that the config names and that is not there is a warning: the config may be meant for another machine.
    """
    run, _ = load_run(config, overrides)
    data, draft = run.config.data, run.config.draft
    named = {
        **{f"data.train.{i}": path for i, path in enumerate(data.train)},
        **{f"data.validation.{i}": path for i, path in enumerate(data.validation)},
        "data.chat_template": data.chat_template,
        "draft.config": draft.config,
        "draft.init_from": draft.init_from,
    }
    for key, path in named.items():
        if path is not None and not path.exists():
            typer.echo(f"warning: {config}: {key}: there is no {path} in {Path.cwd()}", err=True)
    chosen = ", ".join(f"{plugin.section} {plugin.spec.name} ({plugin.source})" for plugin in run.plugins)
    typer.echo(f"{config}: valid. {chosen}")


@app.command(short_help="Print a config with every default filled in.")
def show(config: ConfigArgument, overrides: OverridesArgument = None) -> None:
    """Print the config as TOML with the overrides set and every default filled in.

    Example: specdec config show run.toml data.max_length=1024 > full.toml
    """
    from specdec_core.config.show import to_toml

    run, _ = load_run(config, overrides)
    typer.echo(to_toml(run.table), nl=False)


@app.command(short_help="Print the JSON Schema of configs, for editors.")
def schema(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write to FILE instead of the terminal.")
    ] = None,
) -> None:
    """Print the JSON Schema of configs: the core's keys and those of every installed plugin.

    An editor completes keys from it. With taplo (the VS Code extension "Even Better TOML"):

    specdec config schema --out specdec.schema.json, then put #:schema ./specdec.schema.json
    on the first line of the config.
    """
    from specdec_core.config.schema import config_schema
    from specdec_core.registry.registry import Registry
    from specdec_core.registry.resolve import options_model

    plugins = {}
    for record in Registry.discover().usable():
        try:
            plugins[str(record.kind), record.name] = (record.summary, options_model(record))
        except UserError as error:
            typer.echo(f"warning: left out: {error}", err=True)
    text = json.dumps(config_schema(plugins), indent=2) + "\n"
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}.") from error
