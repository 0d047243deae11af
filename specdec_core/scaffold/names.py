"""All the names of a new plugin, made from the one that its author gives."""

from __future__ import annotations

import re
from dataclasses import dataclass

from specdec_core.errors import UserError

PREFIX = "specdec-"
LONGEST = 40
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_SAME_CLASS = "a class of its package would have the name of the class that it is derived from"
_TAKEN = {
    "core": "specdec-core is specdec itself",
    "exported": _SAME_CLASS,
    "h-f": _SAME_CLASS,
    "trained": _SAME_CLASS,
}


@dataclass(frozen=True)
class Names:
    """name: as in a config; the others follow from it."""

    name: str

    @classmethod
    def of(cls, text: str) -> Names:
        """From `my-algo` or `specdec-my-algo`. Raises UserError if no package can be called that."""
        name = text.removeprefix(PREFIX)
        if not _NAME.fullmatch(name) or len(name) > LONGEST:
            raise UserError(
                f'"{text}" cannot be the name of a plugin: it takes a letter, then letters a-z, digits and single '
                f"hyphens, {LONGEST} characters at most, such as my-algo"
            )
        if name in _TAKEN:
            raise UserError(f'"{text}" cannot be the name of a new plugin: {_TAKEN[name]}; choose another')
        return cls(name)

    @property
    def distribution(self) -> str:
        """What pip installs."""
        return PREFIX + self.name

    @property
    def module(self) -> str:
        """What Python imports."""
        return self.distribution.replace("-", "_")

    @property
    def cls(self) -> str:
        """What the names of its classes begin with."""
        return "".join(part.capitalize() for part in self.name.split("-"))
