"""The contract of an exporter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specdec_core.algorithm.base import ExportedDraft


@dataclass(frozen=True)
class Provenance:
    """Where an export comes from: the run's config and plugin lock (JSON-able), and the step of its weights.

    `trained_target` says that the run trained its target: the draft goes with that one, not with the config's.
    """

    config: dict[str, Any]
    lock: dict[str, Any]
    step: int
    trained_target: bool = False

    def to_json(self) -> dict[str, Any]:
        """As written beside what is exported."""
        return asdict(self)


class Exporter(ABC):
    """Writes a draft in a form that others load. Made with the plugin's validated options."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def write(self, exported: ExportedDraft, out: Path, run: Provenance) -> None:
        """Write `out` whole or not at all, read it back and compare. A draft that stands there is replaced.

        Raises UserError if a tensor is not finite, `out` holds something else, or the disk is full.
        """
