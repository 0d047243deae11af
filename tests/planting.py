"""Mistakes planted in copies of packages, and what the contract kit makes of them."""

from __future__ import annotations

import inspect
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from specdec_core.testing import AlgorithmContract, ExporterContract, VisionBackboneContract

ROOT = Path(__file__).parents[1]
SOURCES = (ROOT, *sorted(ROOT.glob("plugins/*/src")))
TABLES = (ROOT / "tests" / "planted_bugs.py", *sorted(ROOT.glob("plugins/*/tests/planted_bugs.py")))
BROKEN = re.compile(r"BrokenPromise: ([\w-]+) is broken by")
OUTCOME = re.compile(r"^(?:FAILED|ERROR) ", re.MULTILINE)


def _other_loss_mask(learned: str) -> str:
    """Lines that begin a function whose first is `masks = []`, after which `batch` has another loss mask.

    learned  of `same` [B, S, S], the loss mask's [b, t, s] within each document
    """
    return (
        "    same = batch.document_ids.unsqueeze(2) == batch.document_ids.unsqueeze(1)\n"
        "    same &= batch.loss_mask.unsqueeze(1)\n"
        f"    batch = replace(batch, loss_mask={learned})\n"
        "    masks = []\n"
    )


UP_TO_THE_LAST_LEARNED = _other_loss_mask("same.triu().any(-1)")
BETWEEN_THE_LEARNED = _other_loss_mask("same.triu().any(-1) & same.tril().any(-1)")
"""What more than one plugin's table makes of a loss mask; the file edited imports `dataclasses.replace`."""

Edits = tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Bug:
    """A mistake: what is replaced in which files of a package, and the promise that is there to catch it.

    contract  the contract class that is run, of the test_contract.py beside the table
    edits     (file, old, new): `file` begins with the package's name, `old` occurs in it exactly once
    """

    name: str
    promise: str
    contract: str
    edits: Edits


def bug(name: str, promise: str, contract: str, *edits: str) -> Bug:
    """A row of a table of bugs: file, old and new of each edit in turn."""
    assert len(edits) % 3 == 0, f"{name}: edits are file, old, new"
    return Bug(name, promise, contract, tuple(zip(edits[::3], edits[1::3], edits[2::3], strict=True)))


def table(path: Path) -> list[Bug]:
    """The bugs of a `planted_bugs.py`."""
    found: list[Bug] = runpy.run_path(str(path))["BUGS"]
    return found


def source_of(package: str) -> Path:
    """Where a package of this repository lies."""
    found = [path for path in SOURCES if (path / package / "__init__.py").is_file()]
    assert len(found) == 1, f"{package} is in {found}"
    return found[0] / package


def edited(edits: Edits) -> dict[str, str]:
    """The text of each file of `edits` with its mistakes."""
    texts: dict[str, str] = {}
    for file, old, new in edits:
        package, _, name = file.partition("/")
        text = texts.get(file) or (source_of(package) / name).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{file} holds {text.count(old)} times {old!r}; the table of bugs has drifted"
        texts[file] = text.replace(old, new)
    return texts


def plant(edits: Edits, directory: Path) -> None:
    """Copy the packages of `edits` into `directory` and edit the copies."""
    copy({file.partition("/")[0] for file, _, _ in edits}, directory)
    for file, text in edited(edits).items():
        (directory / file).write_text(text, encoding="utf-8")


def copy(packages: Iterable[str], directory: Path) -> None:
    """Copy packages into `directory`."""
    for package in packages:
        shutil.copytree(source_of(package), directory / package, ignore=shutil.ignore_patterns("__pycache__"))


def keeping(promise: str) -> str:
    """The contracts' tests of a promise, as pytest's -k takes them."""
    contracts = (AlgorithmContract, VisionBackboneContract, ExporterContract)
    methods = {name: method for contract in contracts for name, method in inspect.getmembers(contract)}
    return " or ".join(name for name, method in methods.items() if getattr(method, "promise", None) == promise)


def broken_promises(contracts: Path, which: str, path: Path, stop_at_first: bool = False) -> tuple[list[str], str]:
    """Run contract tests with `path` before all others; `which` is pytest's -k.

    Returns the promises that broke, and pytest's output. A failure outside of any promise counts as "none".
    """
    options = f"-q -rfE --tb=no --noconftest -p no:cacheprovider -c {os.devnull} --import-mode=importlib"
    options += " -x" * stop_at_first
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options.split(), "--rootdir", str(path), "-k", which, str(contracts)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (path, contracts.parent, *SOURCES))),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "400",
        },
        cwd=path,
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode in (0, 1), output
    broken = BROKEN.findall(output)
    others = len(OUTCOME.findall(output)) - len(broken)
    return list(dict.fromkeys([*broken, *["none"] * bool(others)])), output
