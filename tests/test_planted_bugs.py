"""The contract kit catches what it is there for: mistakes planted in copies of the shipped plugins.

Each `planted_bugs.py` beside a `test_contract.py` holds a table of them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from planting import TABLES, Bug, broken_promises, copy, keeping, plant, table

pytestmark = pytest.mark.slow
SLIPS = ("NameError", "SyntaxError", "ImportError")
"""Errors of an edit that is no mistake of an author: it would be caught whatever the contract tests."""
WHOLE = "PLANTED_BUGS_WHOLE_CONTRACT"
"""Set it to run the whole contract on every bug, and not only the tests of the promise that is meant to catch it."""
ROWS = [(path.with_name("test_contract.py"), bug) for path in TABLES for bug in table(path)]


@pytest.mark.parametrize(("contracts", "bug"), ROWS, ids=[bug.name.replace(" ", "-") for _, bug in ROWS])
def test_a_planted_bug_is_caught_by_the_promise_meant_for_it(
    contracts: Path, bug: Bug, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(bug.edits, tmp_path)
    which = bug.contract if os.environ.get(WHOLE) else f"{bug.contract} and ({keeping(bug.promise)})"
    broken, output = broken_promises(contracts, which, tmp_path)
    with capsys.disabled():
        print(f"\n| {bug.name} | {bug.edits[0][0]} | {', '.join(broken)} |", end=" ")
    assert bug.promise in broken, output
    assert not [slip for slip in SLIPS if slip in output], output


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.parents[1].name)
def test_copies_without_bugs_keep_every_promise(path: Path, tmp_path: Path) -> None:
    bugs = table(path)
    copy({file.partition("/")[0] for bug in bugs for file, _, _ in bug.edits}, tmp_path)
    classes = " or ".join(sorted({bug.contract for bug in bugs}))
    broken, output = broken_promises(path.with_name("test_contract.py"), classes, tmp_path)
    assert not broken, output
