"""What is known of one plugin, whether it works or not."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from specdec_core.registry.specs import PluginSpec


class State(StrEnum):
    """What may be done with a plugin."""

    ACTIVE = "active"
    SHADOWED = "shadowed"
    CLASH = "clash"
    FAILED = "failed"
    INCOMPATIBLE = "incompatible"
    DISABLED = "disabled"
    NOT_LISTED = "not-listed"
    NOT_LOCKED = "not-locked"
    AVAILABLE = "available"


USABLE = (State.ACTIVE, State.SHADOWED, State.CLASH)
REFUSED = (State.FAILED, State.INCOMPATIBLE, State.DISABLED, State.NOT_LISTED, State.NOT_LOCKED)


@dataclass(frozen=True, slots=True)
class Record:
    """One plugin, or one entry point whose plugins are not known because it was not or could not be loaded.

    `name` is the plugin's name or, without a spec, the entry point's. `reason` says in a sentence why the
    state is not active; a failure keeps its `traceback`. `version` is None and `entry_point` empty if the
    distribution is not installed.
    """

    state: State
    name: str
    distribution: str
    version: str | None = None
    entry_point: str = ""
    kind: str | None = None
    summary: str = ""
    reason: str = ""
    traceback: str = ""
    spec: PluginSpec | None = None

    @property
    def source(self) -> str:
        """Distribution and version."""
        return f"{self.distribution} {self.version}" if self.version else self.distribution
