"""`section.key=value` on the command line: the value is TOML, a bare word is a string."""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Iterable
from typing import Any


class OverrideError(ValueError):
    """An override that cannot be read or applied."""


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """`train.lr=3e-4` to (("train", "lr"), 0.0003). Raises OverrideError."""
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise OverrideError(f"`{text}` is not of the form section.key=value, such as train.lr=3e-4")
    return path, parse_value(value.strip())


def parse_value(text: str) -> Any:
    """A TOML value; what is not one is a string, unless it opens a bracket or a quote. Raises OverrideError."""
    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        if text.startswith(("[", "{", '"', "'")):
            raise OverrideError(f"the value `{text}` is not TOML ({error}); strings inside it need quotes") from error
        return text
    value = document["value"]
    # A date or several lines are no value of ours: they were meant as text.
    if len(document) > 1 or isinstance(value, (datetime.date, datetime.time)):
        return text
    return value


def overridden_keys(overrides: Iterable[str]) -> set[str]:
    """The dotted keys of overrides that can be read."""
    return {text.partition("=")[0].replace(" ", "") for text in overrides}


def apply_overrides(config: dict[str, Any], overrides: Iterable[str]) -> list[str]:
    """Set each override in `config`, in order. Returns a sentence for each that could not be set."""
    problems = []
    for text in overrides:
        try:
            path, value = parse_override(text)
            _set(config, path, value)
        except OverrideError as error:
            problems.append(f"command line: {error}.")
    return problems


def _set(config: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    place: Any = config
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(place, dict):
            if last:
                place[part] = value
            else:
                place = place.setdefault(part, {})
        elif isinstance(place, list):
            index = int(part) if part.isdecimal() else -1
            if not 0 <= index < len(place):
                dotted = ".".join(path[:depth])
                raise OverrideError(f"{'.'.join(path)}: {dotted} is a list of {len(place)}, which has no item `{part}`")
            if last:
                place[index] = value
            else:
                place = place[index]
        else:
            raise OverrideError(f"{'.'.join(path)}: {'.'.join(path[:depth])} is a value, not a table")
