"""Reading the HF-style JSON that `draft.config` names. Whether it fits the target is the algorithm's affair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from specdec_core.config.problems import validation_problems
from specdec_core.errors import UserError, UserErrors


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
