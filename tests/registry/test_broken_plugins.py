"""Every way in which an installed plugin can be of no use, at once, through the commands."""

from __future__ import annotations

import json
from typing import Any

import pytest

HOOKS = "from specdec_core.registry.hooks import hookimpl\nfrom specdec_core.registry.specs import PluginSpec\n"
CONFIG = 'algorithm = "{}"\nbackbone = "beta"\n[target]\npath = "x"\n'

# What is listed as NAME, in which state and why; and what a config that names it is told.
BROKEN = {
    "raises": (
        "failed",
        "RuntimeError: boom",
        "specdec-raises 1.0 failed to load: RuntimeError: boom (`specdec plugins info raises` shows the traceback).",
    ),
    "exits": (
        "failed",
        "it called sys.exit(3) while loading",
        "specdec-exits 1.0 failed to load: it called sys.exit(3) while loading (`specdec plugins info exits` shows the "
        "traceback).",
    ),
    "future": (
        "incompatible",
        "made for plugin API 99; this specdec-core has 1",
        "specdec-future 1.0 is incompatible: made for plugin API 99; this specdec-core has 1.",
    ),
    "misspelt": ("failed", "unknown hook 'specdec_plugin'", "unknown hook 'specdec_plugin'"),
    "twice": (
        "clash",
        "also provided by specdec-twice",
        "is provided by specdec-twice-a 1.0 and specdec-twice-b 1.0. Choose one: put "
        '`algorithm.twice = "specdec-twice-a"` under [prefer] in registry.toml.',
    ),
    "forbidden": (
        "disabled",
        "disabled by [policy] in registry.toml",
        "specdec-forbidden 1.0 is disabled: disabled by [policy] in registry.toml.",
    ),
    "unlisted": (
        "not-listed",
        '[policy] mode is "listed" and no registry.toml lists specdec-unlisted',
        'specdec-unlisted 1.0 is not allowed: [policy] mode is "listed" and no registry.toml lists specdec-unlisted.',
    ),
}


@pytest.fixture
def broken(working: Any) -> Any:
    """All of them beside the algorithm `alpha` and the backbone `beta`, which work, under mode = "listed"."""
    working.add("specdec-raises", "raise RuntimeError('boom')")
    working.add("specdec-exits", "import sys\nsys.exit(3)")
    working.provide("specdec-future", "algorithm", "future", api_version=99)
    working.add("specdec-misspelt", HOOKS + "@hookimpl\ndef specdec_plugin(): return []\n")
    for letter in "ab":
        working.provide(f"specdec-twice-{letter}", "algorithm", "twice")
    working.provide("specdec-forbidden", "algorithm", "forbidden")
    working.provide("specdec-unlisted", "algorithm", "unlisted")
    listed = ("alpha", "beta", "raises", "exits", "future", "misspelt", "twice-a", "twice-b", "forbidden")
    entries = "".join(f"[plugins.specdec-{name}]\nprovides = []\n" for name in listed)
    working.registry(f'[policy]\nmode = "listed"\ndisabled = ["specdec-forbidden"]\n{entries}')
    return working


def test_each_is_listed_with_its_reason_and_everything_else_works(broken: Any) -> None:
    listed = broken.specdec("plugins", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    rows = [row for row in json.loads(listed.stdout) if row["provider"].startswith("specdec-")]
    for name, (state, reason, _) in BROKEN.items():
        found = [row for row in rows if row["name"] == name]
        assert len(found) == (2 if name == "twice" else 1), name
        assert all(row["state"] == state and reason in row["reason"] for row in found), found
    working = {row["name"] for row in rows if row["state"] == "active"}
    assert {"alpha", "beta", "torch", "hf"} <= working
    assert not working & BROKEN.keys()

    shown = broken.specdec("plugins", "list")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "Traceback" not in shown.stdout
    for name, (state, reason, _) in BROKEN.items():
        lines = [line for line in shown.stdout.splitlines() if line.startswith(f"{name} ")]
        assert len(lines) == (2 if name == "twice" else 1), name
        assert all(f" {state} " in line and reason in line for line in lines), lines


def test_the_traceback_is_there_when_asked_for(broken: Any) -> None:
    shown = broken.specdec("plugins", "info", "raises").stdout
    assert "Traceback" in shown
    assert shown.rstrip().endswith("RuntimeError: boom")


def test_what_works_goes_on_working_beside_them(broken: Any) -> None:
    checked = broken.specdec("config", "check", str(broken.config(CONFIG.format("alpha"))))
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "algorithm alpha (specdec-alpha 1.0)" in checked.stdout
    for name in ("alpha", "torch"):
        assert broken.specdec("plugins", "info", name).returncode == 0


@pytest.mark.parametrize("name", BROKEN)
def test_naming_one_in_a_config_fails_with_the_reason(broken: Any, name: str) -> None:
    config = broken.config(CONFIG.format(name))
    for command in (["config", "check"], ["train"]):
        refused = broken.specdec(*command, str(config))
        assert (refused.returncode, refused.stdout) == (2, "")
        (line,) = refused.stderr.splitlines()
        assert line.startswith(f'error: {config}: algorithm.name: algorithm "{name}"')
        assert BROKEN[name][2] in line
