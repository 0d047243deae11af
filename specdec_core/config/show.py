"""A config as TOML, with every key that it could have set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tomlkit
from tomlkit.items import Table


def to_toml(config: Mapping[str, Any]) -> str:
    """A nested mapping as a TOML document. A key that is None, which TOML cannot say, becomes a comment."""
    document = tomlkit.document()
    tables = {key: value for key, value in config.items() if isinstance(value, Mapping)}
    for key, value in config.items():
        if key not in tables:
            _add(document, key, value)
    for key, value in tables.items():
        document.add(key, _table(value))
    return tomlkit.dumps(document)


def _table(values: Mapping[str, Any]) -> Table:
    table = tomlkit.table()
    for key, value in values.items():
        _add(table, key, value)
    return table


def _add(into: tomlkit.TOMLDocument | Table, key: str, value: Any) -> None:
    if value is None:
        into.add(tomlkit.comment(f"{key} is not set"))
    else:
        into.add(key, _without_none(value))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        inline = tomlkit.inline_table()
        inline.update({key: _without_none(item) for key, item in value.items() if item is not None})
        return inline
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value if item is not None]
    return value
