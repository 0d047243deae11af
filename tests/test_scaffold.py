"""`specdec plugins new`: what it writes is installed, tested, linted and type-checked as it is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from specdec_core.cli.main import app
from specdec_core.scaffold.make import KINDS, core_versions, make_package
from specdec_core.scaffold.names import LONGEST, Names

ROOT = Path(__file__).parents[1]
NAMES = {"algorithm": "my-algo", "backbone": "my-family", "exporter": "my-format"}


def specdec(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def tool(command: Sequence[str | Path], cwd: Path, path: Sequence[Path] = ()) -> None:
    """Run a command that must succeed and say nothing on stderr that matters."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One package of each kind, as the command writes it."""
    directory = tmp_path_factory.mktemp("made")
    made = {kind: directory / f"specdec-{name}" for kind, name in NAMES.items()}
    for kind, name in NAMES.items():
        served = ["--model-type", "qwen3"] if kind == "backbone" else []
        done = specdec("plugins", "new", name, "--kind", kind, "--out", made[kind], *served)
        assert done.exit_code == 0, done.output
        count = sum(path.is_file() for path in made[kind].rglob("*"))
        assert done.stdout == (
            f'{made[kind]}: a package of {count} files for {kind} "{name}". Next: pip install -e {made[kind]}\n'
        )
    return made


@pytest.fixture(scope="module")
def site(packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them, installed into a directory by pip."""
    target = tmp_path_factory.mktemp("site")
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    tool(["pip", "install", "--quiet", *offline, "--target", target, *packages.values()], cwd=target)
    return target


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_passes_its_own_tests(packages: dict[str, Path], site: Path, kind: str) -> None:
    tool(["pytest", "-q", "-p", "no:cacheprovider"], cwd=packages[kind], path=[site, ROOT])


def test_packages_are_clean_and_formatted(packages: dict[str, Path]) -> None:
    for package in packages.values():
        tool(["ruff", "check", "--no-cache", "."], cwd=package)
        tool(["ruff", "format", "--no-cache", "--check", "."], cwd=package)


def test_packages_are_typed(packages: dict[str, Path]) -> None:
    sources = [package / folder for package in packages.values() for folder in ("src", "tests")]
    # With the repository's configuration, which is strict too, and so with its cache.
    tool(["mypy", "--config-file", ROOT / "pyproject.toml", *sources], cwd=ROOT)


def test_packages_say_what_they_are(packages: dict[str, Path]) -> None:
    for kind, name in NAMES.items():
        project = tomllib.loads((packages[kind] / "pyproject.toml").read_text())["project"]
        assert project["name"] == f"specdec-{name}"
        assert project["license"] == "Apache-2.0"
        assert project["dependencies"] == [f"specdec-core{core_versions()}"]
        assert list(project["entry-points"]["specdec.plugins"]) == [name]
        readme = (packages[kind] / "README.md").read_text()
        named = re.findall(r"\| `([\w/.]+)` \|", readme)
        assert len(named) > 3
        assert all((packages[kind] / path).exists() for path in named)


def test_no_class_hides_the_one_it_is_derived_from(tmp_path: Path) -> None:
    words = ["a", "x9", "draft", "drafter", "target", "backbone", "algorithm", "config", "class", "hf", "z" * LONGEST]
    for word in words:
        for kind in KINDS:
            make_package(Names.of(word), kind, tmp_path / kind / word, "qwen3")
    tool(["ruff", "check", "--no-cache", "--select", "E9,F,N", "--ignore", "N812", "."], cwd=tmp_path)


@given(st.from_regex(r"[a-z][a-z0-9]{0,5}(-[a-z0-9]{1,5}){0,3}", fullmatch=True).filter(lambda name: name != "h-f"))
def test_names_follow_from_the_one_given(name: str) -> None:
    names = Names.of(name)
    assert Names.of(names.distribution) == names
    assert names.distribution == f"specdec-{names.name}"
    assert names.module.isidentifier()
    assert names.module.replace("_", "-") == names.distribution
    assert f"{names.cls}Draft".isidentifier()


BAD_NAMES = ["", "9", "My-Algo", "my_algo", "my algo", "-a", "a-", "a--b", "a/b", "..", "ä", "specdec-", "a" * 41]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    done = specdec("plugins", "new", "--out", tmp_path / "made", "--", name)
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f'error: "{name}" cannot be the name of a plugin: it takes a letter')
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trained"], '"trained" cannot be the name of a new plugin: a class of its package would have the name of'),
        (["core"], '"core" cannot be the name of a new plugin: specdec-core is specdec itself; choose another'),
        (["specdec-core", "--kind", "exporter"], '"specdec-core" cannot be the name of a new plugin: specdec-core is'),
        (
            ["hf", "--kind", "exporter"],
            'there is already a plugin exporter "hf", of specdec-core 0.1.0; choose another',
        ),
        (["specdec-ngram"], 'there is already a plugin algorithm "ngram", of specdec-ngram'),
        (["ngram", "--kind", "exporter"], "there is already a package specdec-ngram, which one of that name would"),
        (
            ["mine", "--model-type", "qwen3"],
            "--model-type says what a backbone serves; it means nothing for an algorithm",
        ),
        (["mine", "--kind", "cache"], '--kind is "cache"; a package can be made for algorithm, backbone or exporter'),
        (["qwen-3", "--kind", "backbone"], 'no language model of type "qwen_3". Did you mean "qwen3"? Give the type'),
        (["mine", "--kind", "backbone", "--model-type", "qwen33"], 'no language model of type "qwen33". Did you mean'),
    ],
)
def test_what_cannot_be_made_is_refused(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    done = specdec("plugins", "new", *arguments, "--out", tmp_path / "made")
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert sentence in line
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_what_stands_there_is_never_overwritten(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = Path("specdec-mine")
    if kind == "directory":
        place.mkdir()
    else:
        place.write_text("mine")
    done = specdec("plugins", "new", "mine")
    assert (done.exit_code, done.stderr) == (
        2, "error: specdec-mine is there already and was left as it is; choose another place with --out\n"
    )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["specdec-mine"]
    assert place.is_dir() or place.read_text() == "mine"


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = specdec("plugins", "new", "mine", "--out", tmp_path / "file" / "made")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {tmp_path}/file/made cannot be written: ")
    assert done.stderr.endswith("; choose another place with --out\n")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_package_that_is_catalogued_or_installed_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = tmp_path / "registry.toml"
    catalogue.write_text("[plugins.specdec-listed]\nprovides = []\n")
    info = tmp_path / "specdec_other-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: specdec-other\nVersion: 1\n")
    monkeypatch.setenv("SPECDEC_REGISTRY", str(catalogue))
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("listed", "other"):
        done = specdec("plugins", "new", name, "--out", tmp_path / "made")
        assert (done.exit_code, done.stdout) == (2, "")
        assert f"there is already a package specdec-{name}, which one of that name would replace" in done.stderr
    assert not (tmp_path / "made").exists()


def test_the_working_directory_is_the_default_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert specdec("plugins", "new", "mine").exit_code == 0
    assert (tmp_path / "specdec-mine" / "src" / "specdec_mine" / "step.py").is_file()
