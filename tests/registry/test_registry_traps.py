"""What a bad plugin can do to a plugin manager. Each is found and named, and everything else keeps working."""

from __future__ import annotations

import json
from asyncio import CancelledError
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specdec_core.errors import UserError
from specdec_core.registry.record import Record, State
from specdec_core.registry.registry import Registry

HOOKIMPL = "from specdec_core.registry.hooks import hookimpl\nfrom specdec_core.registry.specs import PluginSpec\n"
ONE = 'PluginSpec("algorithm", "bad", "", "a:B")'

TRAPS: dict[str, tuple[str, str]] = {
    "import error": ("import a_package_that_is_not_there", "No module named 'a_package_that_is_not_there'"),
    "any exception": ("raise RuntimeError('boom')", "RuntimeError: boom"),
    "syntax error": ("def", "SyntaxError"),
    "sys.exit": ("import sys\nsys.exit(3)", "it called sys.exit(3) while loading"),
    "a test that skips itself": ("import pytest\npytest.skip('no', allow_module_level=True)", "Skipped: no"),
    "a task that is cancelled": ("import asyncio\nraise asyncio.CancelledError", "CancelledError"),
    "misspelt hook": (HOOKIMPL + "@hookimpl\ndef specdec_plugin(): return []", "unknown hook 'specdec_plugin'"),
    "wrong hook argument": (
        HOOKIMPL + "@hookimpl\ndef specdec_step_finished(run, stepp): pass",
        "hook 'specdec_step_finished'",
    ),
    "argument to the discovery hook": (HOOKIMPL + "@hookimpl\ndef specdec_plugins(config): return []", "config"),
    "no marker": ("def specdec_plugins(): return []", "specdec_plugins is not marked with @hookimpl"),
    "no hook at all": ("x = 1", "implements no hook"),
    "hook raises": (HOOKIMPL + "@hookimpl\ndef specdec_plugins(): raise KeyError('k')", "KeyError"),
    "hook exits": (HOOKIMPL + "@hookimpl\ndef specdec_plugins(): raise SystemExit", "sys.exit(None)"),
    "hook returns other things": (
        HOOKIMPL + "@hookimpl\ndef specdec_plugins(): return ['bad']",
        "'bad', which is not a PluginSpec",
    ),
    "hook returns one spec": (HOOKIMPL + f"@hookimpl\ndef specdec_plugins(): return {ONE}", "not iterable"),
    "unknown kind": (
        HOOKIMPL + "@hookimpl\ndef specdec_plugins(): return [PluginSpec('algoritm', 'bad', '', 'a:B')]",
        "kind 'algoritm' is none of algorithm, backbone",
    ),
    "bad name": (
        HOOKIMPL + "@hookimpl\ndef specdec_plugins(): return [PluginSpec('algorithm', 'Bad Name', '', 'a:B')]",
        "allowed are a-z, 0-9, - and _",
    ),
    "bad reference": (
        HOOKIMPL + "@hookimpl\ndef specdec_plugins(): return [PluginSpec('algorithm', 'bad', '', 'a.B')]",
        "'a.B' is not of the form package.module:Class",
    ),
    "one name twice": (HOOKIMPL + f"@hookimpl\ndef specdec_plugins(): return [{ONE}, {ONE}]", "provided twice"),
    "made for other fields": (
        HOOKIMPL + "@hookimpl\ndef specdec_plugins(): return [PluginSpec(kind='algorithm', colour='red')]",
        "colour",
    ),
}


def record(registry: Registry, distribution: str) -> Record:
    (found,) = [r for r in registry.records if r.distribution == distribution]
    return found


@pytest.mark.parametrize("trap", TRAPS)
def test_a_bad_plugin_is_data_and_its_name_is_fatal(working: Any, trap: str) -> None:
    source, reason = TRAPS[trap]
    working.add("specdec-bad", source)
    registry = Registry.discover()

    bad = record(registry, "specdec-bad")
    assert bad.state is State.FAILED
    assert reason in bad.reason
    assert "\n" not in bad.reason
    assert "Traceback" in bad.traceback
    assert registry.find("algorithm", "alpha").distribution == "specdec-alpha"
    assert registry.find("engine", "torch").distribution == "specdec-core"

    with pytest.raises(UserError) as error:
        registry.find("algorithm", "bad")
    assert 'algorithm "bad": specdec-bad 1.0 failed to load' in str(error.value)
    assert reason in str(error.value)


def test_an_interrupt_while_a_plugin_loads_is_an_interrupt(working: Any) -> None:
    working.add("specdec-slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        Registry.discover()


def test_the_command_line_survives_all_traps_at_once(working: Any) -> None:
    for index, (source, _) in enumerate(TRAPS.values()):
        working.add(f"specdec-bad{index}", source)
    working.add("specdec-noise", "print('noise')\n" + HOOKIMPL + "@hookimpl\ndef specdec_plugins(): return []")
    listed = working.specdec("plugins", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    states = {row["provider"]: row["state"] for row in json.loads(listed.stdout)}
    assert {states[f"specdec-bad{index}"] for index in range(len(TRAPS))} == {"failed"}
    assert states["specdec-alpha"] == states["specdec-core"] == states["specdec-noise"] == "active"

    config = working.config('algorithm = "bad3"\nbackbone = "beta"\n[target]\npath = "x"\n')
    checked = working.specdec("config", "check", str(config))
    assert checked.returncode == 2
    assert "it called sys.exit(3) while loading" in checked.stderr
    assert "Traceback" not in checked.stderr
    assert "Traceback" in working.specdec("plugins", "info", "bad3").stdout


def test_another_api_version_is_incompatible(working: Any) -> None:
    working.provide("specdec-future", "algorithm", "future", api_version=99)
    registry = Registry.discover()
    assert record(registry, "specdec-future").state is State.INCOMPATIBLE
    with pytest.raises(UserError, match=r"specdec-future 1\.0 is incompatible: made for plugin API 99; .* has 1"):
        registry.find("algorithm", "future")
    with pytest.raises(UserError, match='there is no cache "future"'):
        registry.find("cache", "future")


def test_an_incompatible_plugin_is_told_no_events(working: Any) -> None:
    spec = 'PluginSpec("algorithm", "future", "", "a:B", api_version=99)'
    working.add(
        "specdec-future",
        f"{HOOKIMPL}@hookimpl\ndef specdec_plugins(): return [{spec}]\n"
        "@hookimpl\ndef specdec_run_finished(status): open('seen', 'w').close()\n",
    )
    Registry.discover().hooks.specdec_run_finished(run=None, status="completed")
    assert not (working.work / "seen").exists()


def test_two_providers_are_an_error_only_when_named(working: Any) -> None:
    working.provide("specdec-gamma-a", "algorithm", "gamma", version="1.5")
    working.provide("specdec-gamma-b", "algorithm", "gamma", version="2.0")
    registry = Registry.discover()
    assert record(registry, "specdec-gamma-a").state is State.CLASH
    assert record(registry, "specdec-gamma-b").state is State.CLASH
    assert registry.find("algorithm", "alpha").state is State.ACTIVE
    with pytest.raises(UserError) as error:
        registry.find("algorithm", "gamma")
    assert "specdec-gamma-a 1.5 and specdec-gamma-b 2.0" in str(error.value)
    line = str(error.value).split("`")[1]

    working.registry(f"[prefer]\n{line}\n")
    registry = Registry.discover()
    assert registry.find("algorithm", "gamma").distribution == "specdec-gamma-a"
    assert record(registry, "specdec-gamma-b").state is State.SHADOWED


def test_a_preferred_plugin_that_fails_is_not_silently_replaced(working: Any) -> None:
    working.provide("specdec-gamma-a", "algorithm", "gamma")
    working.add("specdec-gamma-b", "raise RuntimeError('boom')")
    working.registry('[prefer]\nalgorithm.gamma = "specdec-gamma-b"\n')
    with pytest.raises(UserError, match=r"\[prefer\] chooses specdec-gamma-b, but .* RuntimeError: boom"):
        Registry.discover().find("algorithm", "gamma")


def test_preferring_a_distribution_that_provides_something_else_changes_nothing(working: Any) -> None:
    working.registry('[prefer]\nalgorithm.alpha = "specdec-beta"\n')
    assert Registry.discover().find("algorithm", "alpha").distribution == "specdec-alpha"


def test_one_name_may_serve_two_kinds(working: Any) -> None:
    working.provide("specdec-alpha-cache", "cache", "alpha")
    registry = Registry.discover()
    assert registry.find("cache", "alpha").distribution == "specdec-alpha-cache"
    assert registry.find("algorithm", "alpha").distribution == "specdec-alpha"


def test_the_same_module_behind_two_entry_points_fails_once(working: Any) -> None:
    info = working.path / "specdec_alpha-1.0.dist-info" / "entry_points.txt"
    info.write_text(info.read_text() + "again = specdec_alpha_entry\n")
    states = [r.state for r in Registry.discover().records if r.distribution == "specdec-alpha"]
    assert sorted(states) == [State.ACTIVE, State.FAILED]


def test_a_distribution_that_is_on_the_path_twice_counts_once(
    working: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = type(working)(tmp_path / "second", working.work)
    other.path.mkdir()
    other.provide("specdec-alpha", "algorithm", "alpha", version="9.0")
    monkeypatch.syspath_prepend(str(other.path))
    registry = Registry.discover()
    assert record(registry, "specdec-alpha").version == "9.0"
    assert registry.find("algorithm", "alpha").version == "9.0"


@pytest.mark.parametrize(
    ("file", "text"),
    [("METADATA", ""), ("METADATA", None), ("entry_points.txt", "[specdec.plugins]\nno equals sign\n")],
)
def test_broken_metadata_is_a_failed_record(working: Any, file: str, text: str | None) -> None:
    working.provide("specdec-broken", "algorithm", "broken")
    path = working.path / "specdec_broken-1.0.dist-info" / file
    path.unlink() if text is None else path.write_text(text)
    registry = Registry.discover()
    (broken,) = [r for r in registry.records if r.state is State.FAILED]
    assert "specdec_broken-1.0.dist-info cannot be read" in broken.reason
    assert registry.find("algorithm", "alpha")


def test_a_plugin_that_only_observes_is_active(working: Any) -> None:
    working.add(
        "specdec-watch", HOOKIMPL + "@hookimpl\ndef specdec_run_finished(status): open('seen', 'w').write(status)"
    )
    registry = Registry.discover()
    assert (record(registry, "specdec-watch").kind, record(registry, "specdec-watch").state) == ("events", State.ACTIVE)
    registry.hooks.specdec_run_finished(run=None, status="completed")
    assert (working.work / "seen").read_text() == "completed"


def test_an_entry_point_that_imports_torch_is_told(site: Any) -> None:
    site.module("torch", "")
    site.add("specdec-slow", "import torch\n" + HOOKIMPL + f"@hookimpl\ndef specdec_plugins(): return [{ONE}]")
    listed = json.loads(site.specdec("plugins", "list", "--json").stdout)
    assert [row["reason"] for row in listed if row["name"] == "bad"] == [
        "its entry point imports torch, which makes commands slow"
    ]


class Observer:
    """Told of steps by a run."""

    def __init__(self, fail: BaseException | None = None) -> None:
        self.steps: list[int] = []
        self.fail = fail


def observer(action: Callable[[Observer, int], None], fail: BaseException | None = None) -> Observer:
    from specdec_core.registry.hooks import hookimpl

    class Watching(Observer):
        @hookimpl
        def specdec_run_started(self, run: object) -> None:
            if self.fail:
                raise self.fail

        @hookimpl
        def specdec_step_finished(self, step: int) -> None:
            action(self, step)

    return Watching(fail)


def note(self: Observer, step: int) -> None:
    self.steps.append(step)


@pytest.mark.parametrize("failure", [RuntimeError("no network"), SystemExit(1), CancelledError(), UserError("quota")])
def test_an_observer_that_raises_is_dropped_with_one_warning(
    site: Any, caplog: pytest.LogCaptureFixture, failure: BaseException
) -> None:
    def fail(self: Observer, step: int) -> None:
        self.steps.append(step)
        raise failure

    registry = Registry.discover()
    first, bad, last = observer(note), observer(fail), observer(note)
    for name, each in (("first", first), ("bad", bad), ("last", last)):
        registry.register_observer(each, name)
    for step in (1, 2):
        registry.hooks.specdec_step_finished(run=None, step=step, metrics={})
    assert (first.steps, bad.steps, last.steps) == ([1, 2], [1], [1, 2])
    (warning,) = caplog.messages
    assert "bad failed in specdec_step_finished and is told nothing more" in warning


def test_observers_are_told_in_pluggys_order(site: Any) -> None:
    from specdec_core.registry.hooks import hookimpl

    told: list[str] = []

    class First:
        @hookimpl(tryfirst=True)
        def specdec_run_finished(self) -> None:
            told.append("first")

    class Last:
        @hookimpl(trylast=True)
        def specdec_run_finished(self) -> None:
            told.append("last")

    registry = Registry.discover()
    for each in (First(), Last()):
        registry.register_observer(each)
    registry.hooks.specdec_run_finished(run=None, status="completed")
    assert told == ["first", "last"]


def test_what_the_user_can_mend_stops_a_run_at_its_start(site: Any) -> None:
    registry = Registry.discover()
    registry.register_observer(observer(note, UserError("log in first")))
    with pytest.raises(UserError, match="log in first"):
        registry.hooks.specdec_run_started(run=None)


def test_an_interrupt_passes_through_observers(site: Any) -> None:
    registry = Registry.discover()
    registry.register_observer(observer(note, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        registry.hooks.specdec_run_started(run=None)


def test_an_observer_with_a_misspelt_hook_is_refused(site: Any) -> None:
    from pluggy import PluginValidationError

    from specdec_core.registry.hooks import hookimpl

    class Misspelt:
        @hookimpl
        def specdec_step_finnished(self) -> None: ...

    registry = Registry.discover()
    with pytest.raises(PluginValidationError, match="specdec_step_finnished"):
        registry.register_observer(Misspelt())
    with pytest.raises(AttributeError):
        registry.hooks.specdec_step_finnished()
