"""Prompts that a target is to answer: lines of conversations of which the answers, if any, are to be replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from specdec_core.data.conversations import MESSAGE_KEYS, LineError, Problem, raise_problems, read_lines
from specdec_core.errors import UserError


def read_prompts(file: Path) -> list[dict[str, Any]]:
    """One record per line, `{"id", "conversations", ...}` with its other keys kept; the line's number if it has no id.

    Raises UserErrors with the first bad lines: those that are no conversation, have no question, hold more than text or
    repeat an id (an interrupted run could not tell where it was), and UserError if the file cannot be read or is empty.
    """
    records: list[dict[str, Any]] = []
    problems: list[Problem] = []
    lines_of: dict[str, int] = {}
    for line in read_lines([file], answered=False):
        if isinstance(line.parsed, Problem):
            problems.append(line.parsed)
            continue
        name = line.parsed.id or str(line.number)
        try:
            messages = line.parsed.templated()
            if not any(message["role"] == "user" for message in messages):
                raise LineError("no question", "has no message of the user, so there is nothing to answer")
            if name in lines_of:
                raise LineError("repeated id", f'has the id "{name}" of line {lines_of[name]}; give each its own')
        except LineError as error:
            problems.append(Problem(line.file, line.number, error.reason, error.message))
            continue
        lines_of[name] = line.number
        others = {k: v for k, v in json.loads(line.raw).items() if k not in (*MESSAGE_KEYS, "id", "truncated")}
        records.append({"id": name, **others, "conversations": messages})
    raise_problems(problems)
    if not records:
        raise UserError(f"{file}: holds no prompt; every line is blank")
    return records
