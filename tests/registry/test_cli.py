"""The `specdec` command: exit codes, what it prints, and what it must not import."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner, Result

import specdec_core
from specdec_core.cli.main import app

HEAVY = {"torch", "transformers", "datasets"}
ONE_PLUGIN_EACH = 30
BASE = 'algorithm = "alpha"\nbackbone = "beta"\n[target]\npath = "x"\n'


def specdec(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="specdec")


@pytest.fixture
def crowded(working: Any) -> Any:
    """Thirty plugins, and a torch that tells when it is imported."""
    for index in range(ONE_PLUGIN_EACH - 2):
        working.provide(f"specdec-more{index}", "algorithm", f"more{index}")
    for name in HEAVY:
        working.module(name, f"raise RuntimeError('{name} was imported')")
    return working


REPORT_IMPORTS = f"""
import atexit, sys
atexit.register(lambda: print("imported:", *sorted({HEAVY} & set(sys.modules)), file=sys.stderr))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["eval", "--help"],
        ["generate", "--help"],
        ["export", "--help"],
        ["data", "--help"],
        ["plugins", "list"],
        ["plugins", "list", "--json"],
        ["plugins", "info", "alpha"],
        ["plugins", "where", "torch"],
        ["plugins", "new", "mine"],
        ["config", "check", "run.toml", "train.lr=1e-3"],
        ["config", "show", "run.toml"],
        ["config", "schema"],
    ],
)
def test_light_commands_import_no_torch_with_thirty_plugins(crowded: Any, arguments: list[str]) -> None:
    crowded.config(BASE)
    done = crowded.specdec(*arguments, prelude=REPORT_IMPORTS)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "imported:"
    assert done.stdout


def test_the_list_shows_every_plugin_with_its_state(crowded: Any) -> None:
    crowded.add("specdec-broken", "raise RuntimeError('boom')")
    crowded.registry('[plugins.specdec-wanted]\nprovides = ["cache.wanted"]\nsummary = "Wanted"\n')
    rows = specdec("plugins", "list").stdout.splitlines()
    assert rows[0].split() == ["NAME", "KIND", "PROVIDER", "VERSION", "STATE", "REASON"]
    table = {row.split()[0]: row for row in rows}
    assert re.fullmatch(r"alpha +algorithm +specdec-alpha +1\.0 +active +The alpha", table["alpha"])
    assert re.fullmatch(r"broken +\? +specdec-broken +1\.0 +failed +RuntimeError: boom", table["broken"])
    assert re.fullmatch(
        r"wanted +cache +specdec-wanted +- +available +not installed: pip install specdec-wanted", table["wanted"]
    )
    assert sum("specdec-more" in row for row in rows) == ONE_PLUGIN_EACH - 2

    caches = json.loads(specdec("plugins", "list", "--json", "--kind", "cache").stdout)
    assert {row["name"] for row in caches} == {"memory", "wanted"}
    assert set(caches[0]) >= {"name", "kind", "provider", "version", "state", "reason", "traceback"}


def test_an_unknown_kind_or_name_suggests_one(working: Any) -> None:
    wrong = specdec("plugins", "list", "--kind", "algoritm")
    assert (wrong.exit_code, wrong.stderr.splitlines()) == (
        2,
        [
            'error: --kind: there is no kind "algoritm". Did you mean "algorithm"? Kinds: '
            "algorithm, backbone, engine, exporter, prompts, cache, logger."
        ],
    )
    for command in ("info", "where"):
        wrong = specdec("plugins", command, "alpa")
        assert wrong.exit_code == 2
        assert 'there is no plugin "alpa". Did you mean "alpha"?' in wrong.stderr


def test_info_shows_options_with_defaults_and_descriptions(working: Any) -> None:
    shown = specdec("plugins", "info", "alpha").stdout
    assert "provider:       specdec-alpha\n" in shown
    assert "  steps (default 7): Training steps.\n" in shown
    assert "options:        none" in specdec("plugins", "info", "beta").stdout


def test_where_names_file_and_line_of_sources_that_cannot_be_imported(working: Any) -> None:
    working.module("alpha_code", "raise RuntimeError\n\nclass Alpha: ...\n")
    shown = specdec("plugins", "where", "alpha").stdout
    assert f"{working.path}/alpha_code.py:3 " in shown
    assert re.search(rf"options +{working.path}/alpha_options.py:\d+ ", shown)
    assert re.search(rf"entry point +{working.path}/specdec_alpha_entry.py:\d+ ", shown)
    assert "not found  (absent.code:Class)" in specdec("plugins", "where", "beta").stdout


def test_where_of_a_failed_or_absent_plugin(working: Any) -> None:
    working.add("specdec-broken", "raise RuntimeError('boom')")
    working.registry('[plugins.specdec-wanted]\nprovides = ["cache.wanted"]\n')
    assert f"{working.path}/specdec_broken_entry.py:1 " in specdec("plugins", "where", "broken").stdout
    absent = specdec("plugins", "where", "wanted")
    assert (absent.exit_code, absent.stderr) == (
        2, 'error: cache "wanted" is not installed: pip install specdec-wanted.\n'
    )  # fmt: skip


def test_check_says_who_serves_what_and_warns_of_missing_files(working: Any) -> None:
    config = working.config(BASE + '[data]\ntrain = ["a.jsonl", "b.jsonl"]\n')
    (working.work / "b.jsonl").touch()
    done = specdec("config", "check", str(config))
    assert done.exit_code == 0
    assert "valid. backbone beta (specdec-beta 1.0), algorithm alpha (specdec-alpha 1.0), engine torch" in done.stdout
    assert done.stderr == f"warning: {config}: data.train.0: there is no a.jsonl in {working.work}\n"


def test_errors_are_one_per_line_with_exit_code_2_and_no_traceback(working: Any) -> None:
    config = working.config(BASE + "[train]\nlrr = 1\nepochs = 0\n")
    done = working.specdec("config", "check", str(config), "algorithm.steps=0")
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"error: {config}: ") for line in lines)


def test_show_prints_a_config_that_means_the_same(working: Any) -> None:
    config = working.config(BASE)
    shown = specdec("config", "show", str(config), "train.lr=3e-4", "algorithm.inner.size=9")
    assert shown.exit_code == 0
    table = tomllib.loads(shown.stdout)
    assert table["train"]["lr"] == 3e-4
    assert table["algorithm"] == {"name": "alpha", "steps": 7, "inner": {"size": 9}}
    config.write_text(shown.stdout)
    assert specdec("config", "show", str(config)).stdout == shown.stdout


@pytest.fixture
def schema(working: Any) -> Any:
    """The JSON Schema with the working site's plugins and one whose model does not refuse unknown keys itself."""
    working.module("lax_options", "from pydantic import BaseModel\nclass Options(BaseModel):\n    size: int = 1\n")
    working.provide("specdec-lax", "algorithm", "lax", config="lax_options:Options")
    done = specdec("config", "schema", "--out", "schema.json")
    assert done.exit_code == 0, done.stderr
    found = json.loads((working.work / "schema.json").read_text())
    assert json.loads(specdec("config", "schema").stdout) == found
    jsonschema.Draft7Validator.check_schema(found)
    return jsonschema.Draft7Validator(found)


@pytest.mark.parametrize(
    "text",
    [
        BASE,
        '[target]\npath = "x"\n[backbone]\nname = "beta"\n[algorithm]\nname = "alpha"\nsteps = 3\ninner.size = 2\n',
        BASE + '[cache]\nname = "memory"\n[eval]\nprompts = [{ name = "jsonl", path = "p" }]\n',
    ],
)
def test_the_schema_accepts_what_the_command_accepts(working: Any, schema: Any, text: str) -> None:
    assert specdec("config", "check", str(working.config(text))).exit_code == 0
    assert [error.message for error in schema.iter_errors(tomllib.loads(text))] == []


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (BASE.replace('"alpha"', '"alhpa"'), ["algorithm"]),
        (BASE.replace('"alpha"', '"beta"'), ["algorithm"]),
        (BASE.replace('"alpha"', '{ name = "alpha", stepz = 1 }'), ["algorithm"]),
        (BASE.replace('"alpha"', '{ name = "alpha", steps = 0 }'), ["algorithm"]),
        (BASE.replace('"alpha"', '{ name = "alpha", inner = { siz = 1 } }'), ["algorithm"]),
        (BASE.replace('"beta"', '{ name = "beta", colour = 1 }'), ["backbone"]),
        (BASE.replace('"beta"', "{ }"), ["backbone"]),
        (BASE + "[export]\n", ["export"]),
        (BASE.replace('"alpha"', '{ name = "lax", siez = 1 }'), ["algorithm"]),
        (BASE + "[train]\nlrr = 1\n", ["train"]),
        (BASE + '[eval]\nprompts = [{ name = "alpha" }]\n', ["eval", "prompts", 0]),
        (BASE + '[[loggers]]\nname = "memory"\n', ["loggers", 0]),
    ],
)
def test_the_schema_refuses_what_the_command_refuses(working: Any, schema: Any, text: str, path: list[Any]) -> None:
    assert specdec("config", "check", str(working.config(text))).exit_code == 2
    errors = list(schema.iter_errors(tomllib.loads(text)))
    assert [list(error.absolute_path) for error in errors] == [path]


def test_a_schema_that_cannot_be_written_is_one_sentence(working: Any) -> None:
    done = specdec("config", "schema", "--out", "no/such/place.json")
    assert (done.exit_code, done.stderr) == (
        2,
        "error: no/such/place.json: cannot be written: No such file or directory.\n",
    )


def test_the_registry_option_reaches_every_command(working: Any) -> None:
    other = working.work / "other.toml"
    other.write_text('[policy]\ndisabled = ["alpha"]\n')
    config = working.config(BASE)
    assert working.specdec("config", "check", str(config)).returncode == 0
    refused = working.specdec("--registry", "other.toml", "config", "check", str(config))
    assert refused.returncode == 2
    assert 'algorithm "alpha": specdec-alpha 1.0 is disabled' in refused.stderr
    missing = working.specdec("--registry", "elsewhere.toml", "plugins", "list")
    assert (missing.returncode, missing.stderr) == (2, f"error: {working.work}/elsewhere.toml: no such file.\n")


def test_version() -> None:
    assert specdec("--version").stdout == f"specdec {specdec_core.__version__}\n"


def test_usage_errors_exit_with_2() -> None:
    assert specdec("trian").exit_code == 2
    assert specdec("train").exit_code == 2
    assert specdec("train", "run.toml", "--lr=3").exit_code == 2


@pytest.mark.parametrize("group", [(), ("config",), ("data",), ("plugins",)])
def test_no_line_of_a_list_of_commands_is_cut_off(group: tuple[str, ...]) -> None:
    assert "..." not in specdec(*group, "--help").output.partition("Commands:")[2]


def test_train_takes_a_config_overrides_and_resume_and_nothing_else() -> None:
    """What a run does is a key of its config; a new flag here would be a second way to say it."""
    from typer.main import get_command

    command: Any = get_command(app)
    parameters = {parameter.name: parameter for parameter in command.commands["train"].params}
    assert set(parameters) - {"help"} == {"config", "overrides", "resume"}
    assert parameters["resume"].opts == ["--resume"]
    assert {parameters[name].param_type_name for name in ("config", "overrides")} == {"argument"}


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        ("KeyboardInterrupt", 130),
        ("RuntimeError('bug')", 1),
        ("SystemExit(7)", 7),
        ("PermissionError(13, 'Permission denied', 'a.jsonl')", 2),
    ],
)
def test_exit_codes(working: Any, raised: str, code: int) -> None:
    """A command that is interrupted, or has a bug: the trainer's module is replaced by one that raises at once."""
    prelude = f"""
import sys, types
trainer = types.ModuleType("specdec_core.train.trainer")
def run_training(run, registry, resume):
    assert resume and run.algorithm.spec.name == "alpha" and registry.find("engine", "torch")
    raise {raised}
trainer.run_training = run_training
sys.modules["specdec_core.train"] = types.ModuleType("specdec_core.train")
sys.modules["specdec_core.train.trainer"] = trainer
"""
    done = working.specdec("train", str(working.config(BASE)), "--resume", prelude=prelude)
    assert done.returncode == code
    assert ("Traceback" in done.stderr) == (code == 1)


FORBIDDEN = re.compile(
    r"\b(n-?gram[-_ ]lookup|prompt[-_ ]lookup|eagle[-_ ]?[0-9]*|medusa|hydra|qwen[a-z0-9_.-]*|llama[a-z0-9_.-]*"
    r"|hunyuan[a-z_]*|mistral|gemma)\b",
    re.IGNORECASE,
)


def test_the_core_names_no_algorithm_and_no_model_family() -> None:
    root = Path(specdec_core.__file__).parent
    found = [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix != ".pyc" and not path.is_symlink()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if FORBIDDEN.search(line)
    ]
    assert found == []


def test_that_pattern_would_find_them() -> None:
    for name in (
        "n-gram lookup",
        "EAGLE-3",
        "eagle3",
        "Medusa",
        "Qwen2.5-VL",
        "qwen3",
        "Llama-3.1",
        "LlamaForCausalLM",
        "HunYuan",
        "Gemma",
    ):
        assert FORBIDDEN.search(f"as in {name}, which"), name
