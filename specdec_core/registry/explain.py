"""Sentences that say why a name is not served, and what mends it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from specdec_core.registry.lock import Lock
from specdec_core.registry.record import Record, State


def requirement(distribution: str, version: str) -> str:
    """What to give to pip, quoted for a shell where it must be."""
    return f'"{distribution}{version}"' if version else distribution


def unusable(record: Record) -> str:
    """What is wrong with one plugin."""
    if record.state is State.AVAILABLE:
        return f"{record.reason}."
    what = {
        State.FAILED: "failed to load",
        State.INCOMPATIBLE: "is incompatible",
        State.DISABLED: "is disabled",
        State.NOT_LISTED: "is not allowed",
        State.NOT_LOCKED: "is not allowed",
    }[record.state]
    more = f" (`specdec plugins info {record.name}` shows the traceback)" if record.traceback else ""
    return f"{record.source} {what}: {record.reason}{more}."


def clash(kind: str, name: str, providers: Sequence[Record]) -> str:
    """Who provides one name, and the line that chooses."""
    sources = " and ".join(record.source for record in providers)
    line = f'{kind}.{name} = "{providers[0].distribution}"'
    return f'{kind} "{name}" is provided by {sources}. Choose one: put `{line}` under [prefer] in registry.toml.'


def made_with(lock: Lock | None, kind: str, name: str, records: Iterable[Record]) -> str:
    """What to install for a name that a run's lock knows, or nothing if its distribution is there."""
    installed = {record.distribution for record in records if record.version is not None}
    for plugin in lock.plugins if lock else ():
        if (plugin.kind, plugin.name) == (kind, name) and plugin.distribution not in installed:
            wanted = requirement(plugin.distribution, f"=={plugin.version}")
            return f" This run was made with {plugin.distribution} {plugin.version}: pip install {wanted}."
    return ""


def failures(failed: Sequence[Record]) -> str:
    """That plugins which failed might have provided a name."""
    sources = ", ".join(dict.fromkeys(record.source for record in failed))
    return f"Not loaded because of errors: {sources}; see `specdec plugins list`."
