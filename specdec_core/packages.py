"""Files of installed Python packages: what `package:NAME/FILE` stands for, wherever a path may be given."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

PREFIX = "package:"


def split(path: str) -> tuple[str, str]:
    """`package:NAME/FILE` to (NAME, FILE)."""
    name, _, file = path.removeprefix(PREFIX).partition("/")
    return name, file


def directory(name: str) -> Path | None:
    """Where an installed package lies; it is found and not imported. None if there is none of that name."""
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))
