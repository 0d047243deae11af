"""The tables of keys in the documentation, made from the models that check these keys.

    python tools/config_tables.py    writes them into the pages

A table follows its heading: `### [section]` of the core, `### kind name` of a plugin.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from specdec_core.config.run import RunConfig, Section
from specdec_core.registry.registry import Registry
from specdec_core.registry.resolve import options_model
from specdec_core.registry.specs import KINDS

ROOT = Path(__file__).parents[1]
HEAD = "| key | default | meaning |\n|---|---|---|\n"
HEADING = re.compile(rf"^### (?:\[(\w+)\]|({'|'.join(KINDS)}) ([\w-]+))$", re.MULTILINE)
TABLE = re.compile(re.escape(HEAD) + r"(?:\|.*\|\n)+")


def pages() -> list[Path]:
    """The documentation."""
    return sorted((ROOT / "docs").glob("*.md"))


def core_sections() -> dict[str, type[Section]]:
    """The sections of a config that are the core's own."""
    found = {name: field.annotation for name, field in RunConfig.model_fields.items()}
    return {name: kind for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, Section)}


def models() -> dict[str, type[BaseModel]]:
    """Of the core's sections, by name, and of every plugin that ships here, by kind and name."""
    shipped = {"specdec-core", *(path.parent.name for path in (ROOT / "plugins").glob("*/pyproject.toml"))}
    records = [record for record in Registry.discover().usable() if record.distribution in shipped]
    return {**core_sections(), **{f"{record.kind} {record.name}": options_model(record) for record in records}}


def default_of(field: FieldInfo) -> str:
    """As TOML would have it."""
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    return "not set" if default is None else f"`{json.dumps(default, default=str)}`"


def table(model: type[BaseModel]) -> str:
    """A row for each key: what its description says, and which words are allowed, if only some are."""
    rows = ""
    for key, field in model.model_fields.items():
        words = [f"`{json.dumps(word)}`" for word in _allowed(field.annotation)]
        allowed = f" One of {', '.join(words)}." if words else ""
        meaning = f"{field.description or ''}{allowed}".replace("|", "\\|")
        rows += f"| `{key}` | {default_of(field)} | {meaning} |\n"
    return HEAD + rows if rows else ""


def _allowed(annotation: Any) -> tuple[Any, ...]:
    """The values of a Literal, or of one that may be left unset."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    optional = [part for part in get_args(annotation) if part is not type(None)]
    return _allowed(optional[0]) if len(optional) == 1 else ()


def rewritten(text: str, known: dict[str, type[BaseModel]]) -> str:
    """A page with the tables of the sections that it has headings for. Raises KeyError for a heading of no model."""
    for heading in reversed(list(HEADING.finditer(text))):
        made = table(known[heading[1] or f"{heading[2]} {heading[3]}"]).replace("\\", r"\\")
        before, after = text[: heading.end()], text[heading.end() :]
        section, mark, rest = after.partition("\n### ")
        text = before + TABLE.sub(made, section, count=1) + mark + rest
    return text


if __name__ == "__main__":
    for page in pages():
        before = page.read_text(encoding="utf-8")
        after = rewritten(before, models())
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(f"{page.relative_to(ROOT)}: tables written")
