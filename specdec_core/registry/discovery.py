"""Entry points to records. Each is loaded by itself, so that one that fails stops no other."""

from __future__ import annotations

import contextlib
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any

import pluggy
from packaging.utils import canonicalize_name

from specdec_core.registry.hooks import PROJECT, Hooks
from specdec_core.registry.policy import Gate
from specdec_core.registry.record import Record, State
from specdec_core.registry.specs import API_VERSION, KINDS, PluginSpec

GROUP = "specdec.plugins"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.\w+)*:\w+(\.\w+)*")


def new_manager() -> pluggy.PluginManager:
    """A plugin manager that knows the hooks and no plugin."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    return manager


def checked_alone(plugin: Any) -> pluggy.PluginManager:
    """A manager that holds `plugin` alone. Raises pluggy.PluginValidationError if one of its hooks is not ours."""
    manager = new_manager()
    manager.register(plugin)
    manager.check_pending()
    return manager


def discover(manager: pluggy.PluginManager, gate: Gate) -> list[Record]:
    """Load every entry point that `gate` lets pass and register those that are sound with `manager`."""
    records = []
    for found in installed():
        if isinstance(found, Record):
            records.append(found)
            continue
        distribution, version, entry_point = found
        blank = Record(State.ACTIVE, entry_point.name, distribution, version, entry_point.value)
        refused = gate.refusal(distribution, version, entry_point.name)
        if refused:
            records.append(replace(blank, state=refused[0], reason=refused[1]))
        else:
            records += _load(manager, entry_point, blank)
    return records


def installed() -> Iterator[tuple[str, str, EntryPoint] | Record]:
    """(distribution, version, entry point) of the group; a record where the metadata itself is broken.

    Of a distribution that is on the path twice the first counts, as for `import`.
    """
    seen: set[str] = set()
    for distribution in distributions():
        try:
            text = distribution.read_text("entry_points.txt")
            if not text or GROUP not in text:
                continue
            if not distribution.name or not distribution.version:
                raise ValueError("METADATA has no Name or no Version")
            name, version = canonicalize_name(distribution.name), distribution.version
            if name in seen:
                continue
            seen.add(name)
            points = [point for point in distribution.entry_points if point.group == GROUP]
        except Exception as error:
            yield _unreadable(distribution, error)
            continue
        for point in points:
            yield name, version, point


def _unreadable(distribution: Distribution, error: Exception) -> Record:
    place = str(getattr(distribution, "_path", "a distribution"))
    reason = f"its metadata in {place} cannot be read: {_one_line(error)}"
    name = place.rpartition("/")[2].partition("-")[0]
    return Record(State.FAILED, name, name, reason=reason, traceback=traceback.format_exc())


def _load(manager: pluggy.PluginManager, entry_point: EntryPoint, blank: Record) -> list[Record]:
    """The records of one entry point; `blank` holds what its metadata says."""
    had_torch = "torch" in sys.modules
    try:
        # What a plugin prints while it loads must not get into a command's output.
        with contextlib.redirect_stdout(sys.stderr):
            plugin = entry_point.load()
            specs = _specs(plugin, blank)
        if all(spec.api_version == API_VERSION for spec in specs):
            manager.register(plugin, name=f"{blank.distribution}:{blank.name}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, and what asyncio and pytest end their own work with
        return [replace(blank, state=State.FAILED, reason=_one_line(error), traceback=traceback.format_exc())]
    note = "" if had_torch or "torch" not in sys.modules else "its entry point imports torch, which makes commands slow"
    if not specs:
        return [replace(blank, kind="events", summary="observes runs", reason=note)]
    return [_record(spec, blank, note) for spec in specs]


def _specs(plugin: Any, blank: Record) -> list[PluginSpec]:
    """What the plugin provides, once its hooks are found to be ours."""
    alone = checked_alone(plugin)
    hooks = {caller.name for caller in alone.get_hookcallers(plugin) or ()}
    unmarked = [name for name in dir(plugin) if hasattr(Hooks, name) and name.startswith("specdec_")]
    for name in unmarked:
        if name not in hooks:
            raise TypeError(f"{name} is not marked with @hookimpl")
    if not hooks:
        raise TypeError(f"{blank.entry_point} implements no hook; it should define specdec_plugins, with @hookimpl")
    specs = [spec for provided in alone.hook.specdec_plugins() for spec in provided]
    _check(specs)
    return specs


def _check(specs: Iterable[Any]) -> None:
    seen = set()
    for spec in specs:
        if not isinstance(spec, PluginSpec):
            raise TypeError(f"specdec_plugins returned {spec!r}, which is not a PluginSpec")
        if spec.kind not in KINDS:
            raise ValueError(f"{spec.name}: kind {spec.kind!r} is none of {', '.join(KINDS)}")
        if not _NAME.fullmatch(spec.name):
            raise ValueError(f"{spec.kind} name {spec.name!r}: allowed are a-z, 0-9, - and _")
        for field in ("implementation", "config"):
            reference = getattr(spec, field)
            if reference is not None and not _REFERENCE.fullmatch(reference):
                raise ValueError(f"{spec.name}: {field} {reference!r} is not of the form package.module:Class")
        if (spec.kind, spec.name) in seen:
            raise ValueError(f"{spec.kind} {spec.name} is provided twice")
        seen.add((spec.kind, spec.name))


def _record(spec: PluginSpec, blank: Record, note: str) -> Record:
    record = replace(blank, name=spec.name, kind=spec.kind, summary=spec.summary, spec=spec, reason=note)
    if spec.api_version != API_VERSION:
        reason = f"made for plugin API {spec.api_version}; this specdec-core has {API_VERSION}"
        return replace(record, state=State.INCOMPATIBLE, reason=reason)
    return record


def _one_line(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r}) while loading"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
