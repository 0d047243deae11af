"""Which plugin, of which distribution and version, served a run: written into run directories and checkpoints."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

import specdec_core
from specdec_core.config.run import PLUGIN_LISTS, Section
from specdec_core.errors import UserError

FILE_NAME = "plugins.lock.json"


class LockedPlugin(Section):
    """One plugin of a run. `entry_point` is where it registered, `implementation` what was loaded."""

    section: str
    kind: str
    name: str
    distribution: str
    version: str
    api_version: int
    entry_point: str
    implementation: str


class Lock(Section):
    """The resolved set."""

    specdec_core: str
    python: str
    plugins: tuple[LockedPlugin, ...]

    def to_json(self) -> str:
        """The lock as a file holds it, to be read by `read_lock`."""
        return self.model_dump_json(indent=2) + "\n"


def make_lock(plugins: Sequence[LockedPlugin]) -> Lock:
    """The lock of `plugins` under this Python and this core; a plugin named twice in a section stands once."""
    return Lock(
        specdec_core=specdec_core.__version__, python=platform.python_version(), plugins=tuple(dict.fromkeys(plugins))
    )


def read_lock(path: Path) -> Lock:
    """The lock that a file holds. Raises UserError if the file is missing or is no lock."""
    try:
        return Lock.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: the plugin lock cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(f"{path}: is not a plugin lock: {'.'.join(map(str, first['loc']))} {first['msg']}.") from error


def compare_lock(old: Lock, new: Lock) -> list[str]:
    """A sentence for each difference, none if the two are equal."""
    sentences = [
        f"{word} was {before} and is now {after}."
        for word, before, after in (
            ("Python", old.python, new.python),
            ("specdec-core", old.specdec_core, new.specdec_core),
        )
        if before != after
    ]
    before, after = _by_place(old), _by_place(new)
    for place in dict.fromkeys([*before, *after]):
        sentences += _difference(place, before.get(place), after.get(place))
    return sentences


def _by_place(lock: Lock) -> dict[str, LockedPlugin]:
    """A list of plugins has a place for each name; any other section is one place."""
    return {f"{p.section} {p.name}" if p.section in PLUGIN_LISTS else p.section: p for p in lock.plugins}


def _difference(place: str, old: LockedPlugin | None, new: LockedPlugin | None) -> list[str]:
    if old == new:
        return []
    if new is None:
        return [f"{place} was used and no longer is."]
    if old is None:
        return [f"{place} is used and was not."]
    if old.name != new.name:
        return [f"{place} was {old.name} of {_source(old)} and is now {new.name} of {_source(new)}."]
    if _source(old) != _source(new):
        return [f"{old.kind} {old.name} was of {_source(old)} and is now of {_source(new)}."]
    return [
        f"{old.kind} {old.name} of {_source(old)}: {field.replace('_', ' ')} was {before} and is now {after}."
        for field in ("api_version", "entry_point", "implementation")
        if (before := getattr(old, field)) != (after := getattr(new, field))
    ]


def _source(plugin: LockedPlugin) -> str:
    return f"{plugin.distribution} {plugin.version}"
