"""Whether a distribution may be imported, decided from its metadata alone."""

from __future__ import annotations

from packaging.utils import canonicalize_name

from specdec_core.registry.catalogue import Catalogue
from specdec_core.registry.lock import read_lock
from specdec_core.registry.record import State

CORE = "specdec-core"


class Gate:
    """The catalogue's policy. The core's own distribution passes every mode, but its names can be disabled."""

    def __init__(self, catalogue: Catalogue) -> None:
        """Reads the lock file, if the policy names one. Raises UserError if it is not a lock."""
        self._catalogue = catalogue
        self._locked: dict[str, str] | None = None
        if catalogue.policy.mode == "locked" and catalogue.policy.lock is not None:
            lock = read_lock(catalogue.policy.lock)
            self._locked = {canonicalize_name(plugin.distribution): plugin.version for plugin in lock.plugins}

    def refusal(self, distribution: str, version: str, entry_point: str) -> tuple[State, str] | None:
        """The state and the reason if this entry point must not be imported, else None."""
        distribution = canonicalize_name(distribution)
        if self._catalogue.is_disabled(distribution, entry_point):
            return State.DISABLED, "disabled by [policy] in registry.toml"
        mode = self._catalogue.policy.mode
        if mode == "open" or distribution == CORE:
            return None
        if self._locked is not None:
            return self._refused_by_lock(self._locked, distribution, version)
        entry = self._catalogue.plugins.get(distribution)
        if entry is None:
            return State.NOT_LISTED, f'[policy] mode is "{mode}" and no registry.toml lists {distribution}'
        if mode == "locked" and not entry.exact:
            return (
                State.NOT_LOCKED,
                f'[policy] mode is "locked" and registry.toml gives no exact version: "=={version}"',
            )
        if not entry.admits(version):
            state = State.NOT_LOCKED if mode == "locked" else State.NOT_LISTED
            return state, f'[policy] mode is "{mode}" and registry.toml allows {entry.version}, not {version}'
        return None

    def _refused_by_lock(self, locked: dict[str, str], distribution: str, version: str) -> tuple[State, str] | None:
        path = self._catalogue.policy.lock
        if distribution not in locked:
            return State.NOT_LOCKED, f'[policy] mode is "locked" and {path} does not hold {distribution}'
        if locked[distribution] != version:
            return State.NOT_LOCKED, f'[policy] mode is "locked" and {path} holds {locked[distribution]}, not {version}'
        return None
