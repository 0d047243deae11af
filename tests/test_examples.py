"""The examples of docs/algorithm.md and docs/backbone.md: packages of a third party, of which specdec does not know."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from example_packages import HYDRA, ROOT, install_hydra, install_metadata
from toy_runs import toy_config
from typer.testing import CliRunner

from specdec_core.cli.main import app
from specdec_core.config.show import to_toml


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Where the package is installed."""
    install_hydra(tmp_path / "site")
    return tmp_path / "site"


def run_tests(package: Path, path: list[Path], *arguments: str) -> str:
    """Run a package's own tests with `path` before Python's. Returns what they print if one fails."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", package, "-c", os.devnull]
    done = subprocess.run(
        [*command, package / "tests", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout if done.returncode else ""


def test_the_example_passes_its_own_tests(site: Path) -> None:
    failed = run_tests(HYDRA, [site])
    assert not failed, failed


def test_the_example_trains_and_is_measured_by_the_commands(
    site: Path, tiny_target_dir: Path, conversations_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(site)
    run, file = tmp_path / "run", tmp_path / "run.toml"
    sections = {
        "algorithm": {"name": "hydra", "heads": 2},
        "draft": {"vocab_size": None},
        "data": {"max_tokens": 240},  # few enough to learn something of, in so many steps
        "train": {"max_steps": 12, "save_every": 12},
    }
    file.write_text(to_toml(toy_config(tiny_target_dir, conversations_file, run, **sections)))

    def specdec(*arguments: str | Path) -> str:
        done = CliRunner().invoke(app, list(map(str, arguments)))
        assert done.exit_code == 0, done.output
        return done.stdout

    specdec("train", file)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert {"accuracy/1", "accuracy/2"} <= metrics[-1].keys()
    limits = ("--prompts", conversations_file, "--max-prompts", "2", "--max-new-tokens", "12", "--k", "2", "--json")
    found = json.loads(specdec("eval", run, *limits))
    assert [method["method"] for method in found["methods"]] == ["target alone", "draft"]
    assert found["methods"][1]["outputs"] == {"identical": 2}
    assert found["methods"][1]["tally"]["proposed"]


def test_the_page_shows_all_of_the_example_and_counts_its_lines() -> None:
    page = (ROOT / "docs" / "algorithm.md").read_text(encoding="utf-8")
    sources = sorted((HYDRA / "src" / "specdec_hydra").glob("*.py"))
    for path in (HYDRA / "pyproject.toml", *sources, *(HYDRA / "tests").glob("*.py")):
        assert path.name == "__init__.py" or f'--8<-- "{path.relative_to(ROOT)}"' in page
    assert f"{sum(len(path.read_text(encoding='utf-8').splitlines()) for path in sources)} lines of Python" in page


def test_nothing_outside_the_example_knows_of_it() -> None:
    known = [path for part in ("specdec_core", "plugins") for path in (ROOT / part).rglob("*")]
    files = [path for path in (ROOT / "registry.toml", *known) if path.suffix in (".py", ".toml", ".jinja")]
    assert len(files) > 200
    assert not [path for path in files if "hydra" in path.read_text(encoding="utf-8").lower()]


def test_the_page_on_backbones_makes_one_that_keeps_the_contract(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "backbone.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r'^```python title="([^"]+)"\n(.*?)^```$', page, re.MULTILINE | re.DOTALL))
    made = CliRunner().invoke(app, shlex.split(f"plugins new granite --kind backbone --out {tmp_path}/specdec-granite"))
    assert made.exit_code == 0, made.output
    package = tmp_path / "specdec-granite"
    install_metadata((package / "pyproject.toml").read_text(encoding="utf-8"), tmp_path)

    with (package / "tests" / "test_granite.py").open("a", encoding="utf-8") as file:
        file.write("\n\n" + blocks.pop("specdec-granite/tests/test_granite.py"))
    failed = run_tests(package, [package / "src", tmp_path], "-k", "Scaled and (embed or teacher)")
    (said,) = re.findall(r"^```text\n(BrokenPromise.*?)^```$", page, re.MULTILINE | re.DOTALL)
    shown = [line.removeprefix("E").strip() for line in failed.splitlines()]
    assert all(any(line in found for found in shown) for line in said.splitlines()), failed
    assert "teacher is broken by backbone granite" in failed

    ((path, text),) = blocks.items()
    (tmp_path / path).write_text(text, encoding="utf-8")
    failed = run_tests(package, [package / "src", tmp_path])
    assert not failed, failed
