"""Which plugins exist and which one serves a name. Loads no implementation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pluggy

from specdec_core.config.problems import did_you_mean
from specdec_core.errors import UserError
from specdec_core.registry.catalogue import Catalogue, layers, load_catalogue
from specdec_core.registry.discovery import checked_alone, discover, new_manager
from specdec_core.registry.events import Events
from specdec_core.registry.explain import clash, failures, requirement, unusable
from specdec_core.registry.policy import Gate
from specdec_core.registry.record import REFUSED, USABLE, Record, State


class Registry:
    """The plugins of this process. Make one with `Registry.discover()`.

    `records` holds every plugin, working or not, sorted by kind and name; `hooks` tells events of a run to
    every observer.
    """

    def __init__(self, catalogue: Catalogue, records: Sequence[Record], manager: pluggy.PluginManager) -> None:
        self.catalogue = catalogue
        self._manager = manager
        self.hooks = Events(manager)
        settled = [self._settle(record, records) for record in records]
        everything = [*settled, *self._not_installed(settled)]
        self.records = tuple(sorted(everything, key=lambda r: (r.kind or "~", r.name, r.distribution)))

    @classmethod
    def discover(cls, registry_file: Path | None = None) -> Registry:
        """Read the layers of registry.toml, then load the entry points that they allow.

        `registry_file` is the last layer; None takes $SPECDEC_REGISTRY, if set. Raises UserError if a layer
        is missing or malformed. A plugin that fails raises nothing: it is a record.
        """
        catalogue = load_catalogue(layers(registry_file))
        manager = new_manager()
        return cls(catalogue, discover(manager, Gate(catalogue)), manager)

    def register_observer(self, observer: object, name: str | None = None) -> None:
        """Tell `observer` of events. Raises pluggy.PluginValidationError if one of its hooks does not exist."""
        checked_alone(observer)
        self._manager.register(observer, name=name)

    def usable(self) -> list[Record]:
        """The plugins that can be named in a config."""
        return [record for record in self.records if record.state is State.ACTIVE and record.spec is not None]

    def names(self, kind: str) -> list[str]:
        """Names of a kind that can be used, aliases included."""
        used = {record.name for record in self.records if record.kind == kind and record.state in USABLE}
        return sorted(used | set(self._aliases(kind)))

    def find(self, kind: str, name: str) -> Record:
        """The record that serves a name. Raises UserError saying why there is none, and what would mend it."""
        name = self._aliases(kind).get(name, name)
        providers = [r for r in self.records if r.kind == kind and r.name == name and r.state in USABLE]
        preferred = self._preferred(kind, name)
        if preferred and all(record.distribution != preferred for record in providers):
            broken = [r for r in self.records if r.distribution == preferred and r.state in REFUSED]
            if broken:
                raise UserError(f'{kind} "{name}": [prefer] chooses {preferred}, but {unusable(broken[0])}')
        if len(providers) > 1:
            providers = [record for record in providers if record.state is State.ACTIVE] or providers
        if len(providers) == 1:
            return providers[0]
        raise UserError(clash(kind, name, providers) if providers else self._absent(kind, name))

    def _settle(self, record: Record, records: Sequence[Record]) -> Record:
        """Policy on names, then clashes."""
        if record.state is not State.ACTIVE or record.spec is None:
            return record
        if self.catalogue.is_disabled(record.name, f"{record.kind}.{record.name}"):
            return replace(record, state=State.DISABLED, reason="disabled by [policy] in registry.toml")
        rivals = [
            other.distribution
            for other in records
            if (other.kind, other.name, other.state) == (record.kind, record.name, State.ACTIVE)
            and other.spec is not None
            and other is not record
        ]
        preferred = self._preferred(record.spec.kind, record.name)
        if not rivals or preferred == record.distribution:
            return record
        if preferred in rivals:
            return replace(record, state=State.SHADOWED, reason=f"[prefer] chooses {preferred}")
        return replace(record, state=State.CLASH, reason=f"also provided by {', '.join(rivals)}")

    def _not_installed(self, installed: Sequence[Record]) -> Iterator[Record]:
        provided = {(record.kind, record.name, record.distribution) for record in installed}
        by_distribution = {record.distribution: record for record in installed}
        for kind, name, distribution in self.catalogue.provided():
            other = by_distribution.get(distribution)
            if (kind, name, distribution) in provided or (other and other.state in REFUSED):
                continue
            entry = self.catalogue.plugins[distribution]
            missing = f"not in the installed {other.source}" if other else "not installed"
            reason = f"{missing}: pip install {requirement(distribution, entry.version)}"
            yield Record(State.AVAILABLE, name, distribution, kind=kind, summary=entry.summary, reason=reason)

    def _absent(self, kind: str, name: str) -> str:
        """Why nothing serves `name`: a plugin that cannot be used, one not installed, or a misspelt name."""
        catalogued = {d for k, n, d in self.catalogue.provided() if (k, n) == (kind, name)}
        for record in self.records:
            same_name = record.name == name and record.kind in (kind, None)
            unknown_content = record.kind is None and record.distribution in catalogued
            if record.state not in USABLE and (same_name or unknown_content):
                return f'{kind} "{name}": {unusable(record)}'
        return f'there is no {kind} "{name}".{self._hint(kind, name)}'

    def _hint(self, kind: str, name: str) -> str:
        known = {record.name for record in self.records if record.kind == kind} | set(self._aliases(kind))
        hint = did_you_mean(name, known)
        others = [record.kind for record in self.records if record.name == name and record.state in USABLE]
        if not hint and others:
            hint = f' "{name}" is of kind {others[0]}.'
        usable = self.names(kind)
        hint += f" Installed: {', '.join(usable)}." if usable else f" No {kind} is installed."
        failed = [record for record in self.records if record.state is State.FAILED]
        if failed:
            hint += f" {failures(failed)}"
        return hint

    def _preferred(self, kind: str, name: str) -> str | None:
        return self.catalogue.prefer.get(kind, {}).get(name)

    def _aliases(self, kind: str) -> dict[str, str]:
        return dict(self.catalogue.alias.get(kind, {}))
