"""`specdec plugins`: list, info, where, new."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specdec_core.errors import UserError
from specdec_core.registry.record import USABLE, Record
from specdec_core.registry.specs import KINDS

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from specdec_core.scaffold.names import Names

app = typer.Typer(no_args_is_help=True, help="See what is installed and what fails; write and test plugins.")

KindOption = Annotated[
    str | None, typer.Option("--kind", metavar="KIND", help=f"Only plugins of this kind: {', '.join(KINDS)}.")
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A plugin's name, as in the list.")]


@app.command("list", short_help="List plugins, installed or catalogued.")
def list_plugins(
    kind: KindOption = None, as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False
) -> None:
    """List plugins, installed or catalogued: name, kind, provider, version, state and the reason for the state.

    active: can be used. shadowed: [prefer] chose another provider. clash: two providers, choose one with [prefer].
    failed: raised while loading. incompatible: made for another plugin API. disabled, not-listed, not-locked:
    refused by [policy]. available: in the catalogue but not installed.

    Example: specdec plugins list --kind algorithm
    """
    records = _records(kind)
    if as_json:
        typer.echo(json.dumps([_as_dict(record) for record in records], indent=2))
        return
    rows = [("NAME", "KIND", "PROVIDER", "VERSION", "STATE", "REASON")]
    rows += [
        (r.name, r.kind or "?", r.distribution, r.version or "-", r.state.value, r.reason or r.summary) for r in records
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        typer.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]]).rstrip())


@app.command(short_help="Show a plugin's options, or why it does not work.")
def info(name: NameArgument, kind: KindOption = None) -> None:
    """Show everything known of a plugin: its provider, its options with defaults, or why it does not work.

    Example: specdec plugins info torch
    """
    from specdec_core.registry.resolve import options_model

    for record in named(name, kind):
        for label, value in _as_dict(record).items():
            if value and label != "traceback":
                typer.echo(f"{label + ':':16}{value}")
        if record.state in USABLE and record.spec is not None:
            fields = options_model(record).model_fields
            typer.echo("options:" if fields else "options:        none")
            for key, field in fields.items():
                default = "required" if field.is_required() else f"default {_default(field)}"
                typer.echo(f"  {key} ({default}){': ' + field.description if field.description else ''}")
        if record.traceback:
            typer.echo(f"\n{record.traceback}")


@app.command(short_help="Print where a plugin's sources stand.")
def where(name: NameArgument, kind: KindOption = None) -> None:
    """Print file and line of a plugin's class, of its options and of its entry point, without importing them.

    Example: specdec plugins where torch
    """
    from specdec_core.registry.locate import locate

    for record in named(name, kind):
        if not record.entry_point:
            raise UserError(f'{record.kind} "{record.name}" is {record.reason}.')
        references = [("entry point", _registration(record.entry_point))]
        if record.spec:
            references = [("class", record.spec.implementation), ("options", record.spec.config or ""), *references]
        for label, reference in references:
            if reference:
                typer.echo(f"{label:12}{locate(reference) or 'not found'}  ({reference})")


@app.command(short_help="Write a new plugin's package.")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="As it will stand in a config.")],
    kind: Annotated[
        str, typer.Option("--kind", metavar="KIND", help="What it is: algorithm, backbone or exporter.")
    ] = "algorithm",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where the package goes. Default: ./specdec-NAME.")
    ] = None,
    model_type: Annotated[
        str | None,
        typer.Option(
            "--model-type",
            metavar="TYPE",
            help="Of a backbone: the model_type in the config.json of the targets that it serves. Default: NAME.",
        ),
    ] = None,
) -> None:
    """Write a package that installs, passes its tests and works; its author then changes what it does.

    Example: specdec plugins new my-algo --kind algorithm
    """
    from specdec_core.scaffold.make import KINDS, make_package
    from specdec_core.scaffold.names import Names

    names = Names.of(name)
    if kind not in KINDS:
        raise UserError(f'--kind is "{kind}"; a package can be made for {", ".join(KINDS[:-1])} or {KINDS[-1]}')
    if model_type and kind != "backbone":
        raise UserError(f"--model-type says what a backbone serves; it means nothing for an {kind}")
    _refuse_taken(names, kind)
    directory = out or Path(names.distribution)
    served = _model_type(model_type or names.name.replace("-", "_")) if kind == "backbone" else ""
    count = len(make_package(names, kind, directory, served))
    typer.echo(f'{directory}: a package of {count} files for {kind} "{names.name}". Next: pip install -e {directory}')


def _refuse_taken(names: Names, kind: str) -> None:
    """Raises UserError if there is such a plugin, or a distribution that the new one's would replace."""
    from importlib.metadata import distributions

    from specdec_core.registry.registry import Registry

    registry = Registry.discover()
    known = [record for record in registry.records if record.name == names.name and record.kind == kind]
    if known:
        raise UserError(f'there is already a plugin {kind} "{names.name}", of {known[0].source}; choose another name')
    installed = list(distributions(name=names.distribution))
    if installed or names.distribution in registry.catalogue.plugins:
        raise UserError(
            f"there is already a package {names.distribution}, which one of that name would replace when it is "
            "installed; choose another name"
        )


def _model_type(name: str) -> str:
    """Raises UserError if transformers does not know a model type of this name."""
    from specdec_core.config.problems import did_you_mean
    from specdec_core.scaffold.make import known_model_types

    known = known_model_types()
    if name not in known:
        raise UserError(
            f'--model-type: transformers knows no language model of type "{name}".{did_you_mean(name, known)} '
            "Give the type that stands in the targets' config.json, or the one most like it."
        )
    return name


def _registration(entry_point: str) -> str:
    from specdec_core.registry.locate import locate

    hook = entry_point if ":" in entry_point else f"{entry_point}:specdec_plugins"
    return hook if locate(hook) else entry_point


def _records(kind: str | None) -> list[Record]:
    from specdec_core.config.problems import did_you_mean
    from specdec_core.registry.registry import Registry

    if kind is not None and kind not in KINDS:
        raise UserError(f'--kind: there is no kind "{kind}".{did_you_mean(kind, KINDS)} Kinds: {", ".join(KINDS)}.')
    return [record for record in Registry.discover().records if kind in (None, record.kind)]


def named(name: str, kind: str | None) -> list[Record]:
    """Every record of this name: several if kinds or distributions share it."""
    from specdec_core.config.problems import did_you_mean

    records = _records(kind)
    found = [record for record in records if name in (record.name, record.distribution)]
    if not found:
        hint = did_you_mean(name, [record.name for record in records])
        raise UserError(f'there is no plugin "{name}".{hint} `specdec plugins list` shows all.')
    return found


def _as_dict(record: Record) -> dict[str, Any]:
    return {
        "name": record.name,
        "kind": record.kind,
        "provider": record.distribution,
        "version": record.version,
        "state": record.state.value,
        "reason": record.reason,
        "summary": record.summary,
        "entry_point": record.entry_point,
        "implementation": record.spec.implementation if record.spec else None,
        "config": record.spec.config if record.spec else None,
        "api_version": record.spec.api_version if record.spec else None,
        "traceback": record.traceback,
    }


def _default(field: FieldInfo) -> str:
    return json.dumps(field.get_default(call_default_factory=True), default=str)
