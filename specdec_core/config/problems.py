"""What is wrong with a config, in sentences: where, what was found, what is allowed, what was perhaps meant."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_ALLOWED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a string in quotes",
    "path": "a path in quotes",
    "tuple": "a list in square brackets",
    "list": "a list in square brackets",
    "dict": "a table",
    "model": "a table",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong at the dotted path `path`."""

    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


def closest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `word` was perhaps meant to be, or None if none is close."""
    by_key = {candidate.lower(): candidate for candidate in candidates}
    close = difflib.get_close_matches(word.lower(), by_key, n=1)
    return by_key[close[0]] if close else None


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """` Did you mean "..."?` for the candidate closest to `word`, or nothing if none is close."""
    found = closest(word, candidates)
    return f' Did you mean "{found}"?' if found else ""


def shown(value: Any) -> str:
    """A value as the user wrote it, shortened to fit into a sentence."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def validation_problems(
    error: ValidationError, model: type[BaseModel], data: Any, prefix: Sequence[str] = ()
) -> list[Problem]:
    """Pydantic's errors as problems, one for each path. `data` is what was validated, `prefix` where it stands."""
    alternatives: dict[tuple[str | int, ...], list[str]] = {}
    for detail in error.errors(include_url=False):
        path = _path_in(data, detail)
        alternatives.setdefault(path, []).append(_sentence(detail, model, path))
    problems = []
    for path, sentences in alternatives.items():
        text = " Or: ".join(dict.fromkeys(sentences))
        problems.append(Problem(".".join([*prefix, *map(str, path)]), text))
    return problems


def _path_in(data: Any, detail: ErrorDetails) -> tuple[str | int, ...]:
    """The error's location without the tags that pydantic adds for the members of a union."""
    path: list[str | int] = []
    for part in detail["loc"]:
        if _has(data, part):
            data = data[part]
        elif detail["type"] != "missing" or part != detail["loc"][-1]:
            continue
        path.append(part)
    return tuple(path)


def _has(data: Any, part: str | int) -> bool:
    if isinstance(part, int):
        return isinstance(data, list | tuple) and part < len(data)
    return isinstance(data, Mapping) and part in data


def _sentence(detail: ErrorDetails, model: type[BaseModel], path: tuple[str | int, ...]) -> str:
    kind, found = detail["type"], shown(detail["input"])
    key = str(path[-1]) if path else ""
    if kind == "extra_forbidden":
        siblings = _fields_at(model, path[:-1])
        hint = did_you_mean(key, siblings) or _other_section(model, key)
        return f"unknown key (found {found}).{hint} Allowed keys: {', '.join(siblings)}."
    if kind == "missing":
        return f"missing.{_description(model, path)}"
    if kind == "literal_error":
        expected = detail["ctx"]["expected"]
        hint = did_you_mean(str(detail["input"]), re.findall(r"'([^']*)'", expected))
        return f"found {found}; allowed: {expected}.{hint}"
    if kind in ("value_error", "assertion_error"):
        return f"found {found}; {detail['msg'].partition(', ')[2]}."
    allowed = _ALLOWED.get(kind.split("_")[0]) if kind.endswith(("_type", "_parsing", "_from_float")) else None
    if allowed is None:
        allowed = detail["msg"].removeprefix("Input should be ").removeprefix("Input should ")
    example = f", such as [{found}]" if kind in ("tuple_type", "list_type") and isinstance(detail["input"], str) else ""
    return f"found {found}; allowed: {allowed}{example}."


def _fields_at(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The keys that the table at `path` may have."""
    found = _model_at(model, path)
    return list(found.model_fields) if found else []


def _description(model: type[BaseModel], path: Sequence[str | int]) -> str:
    parent = _model_at(model, path[:-1])
    field = parent.model_fields.get(str(path[-1])) if parent else None
    return f" {field.description}" if field and field.description else ""


def _other_section(model: type[BaseModel], key: str) -> str:
    """Says that a key of one section was written in another."""
    homes = [name for name in model.model_fields if key in _fields_at(model, [name])]
    return f" Did you mean {homes[0]}.{key}?" if len(homes) == 1 else ""


def _model_at(model: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel] | None:
    for part in path:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = next(_models_in(field.annotation), None) if field else None
        if inner is None:
            return None
        model = inner
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
