"""`specdec plugins check`: the contract of an installed plugin, run by pytest as its own tests would run it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from specdec_core.cli.plugins import KindOption, NameArgument, named
from specdec_core.errors import UserError, UserErrors
from specdec_core.registry.record import Record

CONTRACTS = {"algorithm": "AlgorithmContract", "backbone": "BackboneContract", "exporter": "ExporterContract"}
SETTINGS = "[pytest]\naddopts = -q --tb=short -p no:cacheprovider\n"


def check(
    name: NameArgument,
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", show_default=False, help="The plugin's options. Values are TOML."),
    ] = None,
    kind: KindOption = None,
    target: Annotated[
        Path | None,
        typer.Option("--target", metavar="DIR", help="For a backbone: a small model of its family, with a tokenizer."),
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option("--vocab-size", metavar="N", min=8, help="For an algorithm: the size of the draft vocabulary."),
    ] = None,
    waive: Annotated[
        list[str] | None,
        typer.Option("--waive", metavar="PROMISE", help="Skip what these options break on purpose. Repeatable."),
    ] = None,
) -> None:
    """Test whether an installed plugin keeps what algorithms, backbones and exporters promise.

    The tests are those that a plugin's own tests inherit from specdec_core.testing; they need pytest.

    Example: specdec plugins check my-algo width=64
    """
    if find_spec("pytest") is None:
        raise UserError(
            'the contracts are tests for pytest, which is not installed: pip install "specdec-core[testing]"'
        )
    said = {"waived": _waived(waive or []), **({} if vocab_size is None else {"vocab_size": vocab_size})}
    sources = [_source(record, options or [], target, said) for record in _served(name, kind)]
    import pytest

    with TemporaryDirectory() as directory:
        files = [Path(directory) / f"test_{number}.py" for number in range(len(sources))]
        for file, source in zip(files, sources, strict=True):
            file.write_text(source, encoding="utf-8")
        settings = Path(directory) / "pytest.ini"
        settings.write_text(SETTINGS, encoding="utf-8")
        kept = pytest.main(["-c", str(settings), "--rootdir", directory, *map(str, files)]) == pytest.ExitCode.OK
    if not kept:
        raise typer.Exit(1)


def _served(name: str, kind: str | None) -> list[Record]:
    """What a run would find under the name, or in the distribution of that name. Raises UserError if it is no use."""
    from specdec_core.registry.explain import unusable
    from specdec_core.registry.registry import Registry

    records = named(name, kind)
    for record in records:
        if record.kind is None:
            raise UserError(unusable(record))
    wanted = dict.fromkeys((record.kind, record.name) for record in records if record.kind in CONTRACTS)
    if not wanted:
        raise UserError(f'"{name}" has no contract to keep: of the kinds of plugins, {", ".join(CONTRACTS)} have one')
    registry = Registry.discover()
    return [registry.find(str(each), name) for each, name in wanted]


def _waived(promises: list[str]) -> dict[str, str]:
    if not promises:
        return {}  # before torch is imported
    from specdec_core.config.problems import did_you_mean
    from specdec_core.testing.promises import PROMISES

    for name in promises:
        if name not in PROMISES:
            raise UserError(f'--waive: there is no promise "{name}".{did_you_mean(name, PROMISES)}')
    return dict.fromkeys(promises, "by --waive")


def _source(record: Record, overrides: list[str], target: Path | None, said: Mapping[str, Any]) -> str:
    """The test file of one plugin. Raises UserError if its class, its options or the target are wrong."""
    from specdec_core.registry.resolve import load_class

    if record.kind == "backbone" and target is None:
        raise UserError(f'backbone "{record.name}" is tested with a model of its family: name one with --target DIR')
    if target is not None and not target.is_dir():
        raise UserError(f"--target: there is no directory {target}")
    if record.kind != "algorithm" and "vocab_size" in said:
        raise UserError(f'--vocab-size is the size of a draft vocabulary; {record.kind} "{record.name}" has none')
    said = {"options": _options(record, overrides), **said}
    assert record.spec is not None
    load_class(record.spec, record.source)
    return contract_source(str(record.kind), record.name, said, target if record.kind == "backbone" else None)


def _options(record: Record, overrides: list[str]) -> dict[str, Any]:
    from pydantic import ValidationError

    from specdec_core.config.overrides import apply_overrides
    from specdec_core.config.problems import validation_problems
    from specdec_core.registry.resolve import options_model, validate_options

    options: dict[str, Any] = {}
    problems = apply_overrides(options, overrides)
    model = options_model(record)
    try:
        validate_options(model, options)
    except ValidationError as error:
        problems += [str(problem) for problem in validation_problems(error, model, options, prefix=[str(record.kind)])]
    if problems:
        raise UserErrors(problems)
    return options


def contract_source(kind: str, name: str, said: Mapping[str, Any], target: Path | None) -> str:
    """What an author would write to inherit the contract.

    said    the contract's attributes, such as options and waived
    target  where a backbone finds a model
    """
    lines = [
        "from pathlib import Path",
        f"from specdec_core.testing import {CONTRACTS[kind]}",
        f"class Test{kind.capitalize()}({CONTRACTS[kind]}):",
        f"    name = {name!r}",
        *(f"    {attribute} = {value!r}" for attribute, value in said.items()),
    ]
    if target is not None:
        lines += [
            "    def make_target(self, directory):",
            f"        for file in Path({str(target.resolve())!r}).iterdir():",
            "            (directory / file.name).symlink_to(file)",
        ]
    return "\n".join(lines) + "\n"
