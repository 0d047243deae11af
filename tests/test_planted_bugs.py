"""The contract kit catches what it is there for: mistakes planted in copies of the shipped plugins.

Each `planted_bugs.py` beside a `test_contract.py` holds a table of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from planting import TABLES, Bug, broken_promises, copy, keeping, plant, table

pytestmark = pytest.mark.slow
WHOLE = "PLANTED_BUGS_WHOLE_CONTRACT"
"""Set it to run the whole contract on every bug, and not only the tests of the promise that is meant to catch it."""
ROWS = [(path.with_name("test_contract.py"), bug) for path in TABLES for bug in table(path)]


@pytest.fixture(scope="module")
def caught(request: pytest.FixtureRequest) -> Iterator[list[tuple[str, str, str, str]]]:
    """Bug, plugin, file and the promises that broke: filled by the tests, and printed as a table after the last."""
    rows: list[tuple[str, str, str, str]] = [("bug", "plugin", "file", "caught by"), ("---",) * 4]
    yield rows
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n", *(f"| {' | '.join(row)} |" for row in rows), sep="\n")


@pytest.mark.parametrize(("contracts", "bug"), ROWS, ids=[bug.name.replace(" ", "-") for _, bug in ROWS])
def test_a_planted_bug_is_caught_by_the_promise_meant_for_it(
    contracts: Path, bug: Bug, tmp_path: Path, caught: list[tuple[str, str, str, str]]
) -> None:
    plant(bug.edits, tmp_path)
    whole = bool(os.environ.get(WHOLE))
    which = bug.contract if whole else f"{bug.contract} and ({keeping(bug.promise)})"
    broken, output = broken_promises(contracts, which, tmp_path, stop_at_first=not whole)
    caught.append((bug.name, plugin_of(contracts), bug.edits[0][0], ", ".join(broken) or "nothing"))
    assert bug.promise in broken, output


def plugin_of(contracts: Path) -> str:
    """The plugin that a test_contract.py is of."""
    return contracts.parents[1].name if contracts.parents[2].name == "plugins" else "specdec-core"


@pytest.mark.parametrize("path", TABLES, ids=plugin_of)
def test_copies_without_bugs_keep_every_promise(path: Path, tmp_path: Path) -> None:
    bugs = table(path)
    copy({file.partition("/")[0] for bug in bugs for file, _, _ in bug.edits}, tmp_path)
    classes = " or ".join(sorted({bug.contract for bug in bugs}))
    broken, output = broken_promises(path.with_name("test_contract.py"), classes, tmp_path)
    assert not broken, output
