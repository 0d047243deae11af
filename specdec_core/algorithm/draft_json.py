"""Reading the HF-style JSON that `draft.config` names, and what every such JSON must agree with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from specdec_core.config.problems import validation_problems
from specdec_core.config.run import DraftSection
from specdec_core.errors import UserError, UserErrors
from specdec_core.target.base import TargetFacts

# What a draft must share with the target, because it reads the target's states and names the target's tokens.
_SHARED = ("hidden_size", "vocab_size")


def read_draft_json(path: Path, model: type[BaseModel]) -> dict[str, Any]:
    """The JSON's keys, those that are null left out.

    `model` declares the types of the keys that the draft is built from; a key may be missing. Raises UserError if
    the file cannot be read or holds no object, and UserErrors naming every key whose value `model` refuses.
    """
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"draft.config: cannot read {path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"draft.config: {path} is not JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"draft.config: {path} holds {type(loaded).__name__}, not an object")
    loaded = {key: value for key, value in loaded.items() if value is not None}
    try:
        model.model_validate(loaded)
    except ValidationError as error:
        problems = validation_problems(error, model, loaded)
        raise UserErrors([f"draft.config: {path}: {problem}" for problem in problems]) from error
    return loaded


def draft_vocab_size(facts: TargetFacts, draft: DraftSection) -> int:
    """How many tokens the draft can say. Raises UserError if `draft.vocab_size` is more than the target's."""
    if draft.vocab_size is not None and draft.vocab_size > facts.vocab_size:
        raise UserError(
            f"draft.vocab_size is {draft.vocab_size}; the target's vocabulary holds {facts.vocab_size} tokens"
        )
    return draft.vocab_size or facts.vocab_size


def target_problems(path: Path, loaded: Mapping[str, Any], facts: TargetFacts) -> list[str]:
    """How a draft JSON disagrees with the target: another hidden or vocabulary size, or one that is missing."""
    problems = [f"draft.config: {path} lacks {key!r}" for key in _SHARED if key not in loaded]
    for key in _SHARED:
        if key in loaded and loaded[key] != getattr(facts, key):
            problems.append(
                f"draft.config: {path} has {key} {loaded[key]}, the target {facts.name_or_path} has "
                f"{getattr(facts, key)}; use the target's"
            )
    return problems


def vocab_problems(path: Path, loaded: Mapping[str, Any], facts: TargetFacts, draft: DraftSection) -> list[str]:
    """How its `draft_vocab_size`, if it has one, disagrees with `draft.vocab_size` or with the target."""
    size = loaded.get("draft_vocab_size")
    problems = []
    if draft.vocab_size is not None and size is not None and size != draft.vocab_size:
        problems.append(f"draft.vocab_size is {draft.vocab_size}, {path} has draft_vocab_size {size}; make them agree")
    if isinstance(size, int) and not 1 <= size <= facts.vocab_size:
        problems.append(
            f"draft.config: {path} has draft_vocab_size {size}, the target's vocabulary holds {facts.vocab_size}"
        )
    return problems


def algorithm_problems(path: Path, loaded: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """How it disagrees with what the run's [algorithm] says; `own` are those keys."""
    return [
        f"draft.config: {path} has {key} {loaded[key]}, the run's [algorithm] {value}; make them agree"
        for key, value in own.items()
        if key in loaded and loaded[key] != value
    ]
