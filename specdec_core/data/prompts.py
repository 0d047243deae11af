"""Prompts that a target is to answer: lines of conversations of which the answers, if any, are to be replaced."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdec_core.data.conversations import (
    MESSAGE_KEYS,
    Conversation,
    LineError,
    Message,
    Problem,
    raise_problems,
    read_lines,
    with_sources,
)
from specdec_core.data.media_reader import MediaReader
from specdec_core.data.sources import local_path
from specdec_core.data.template import ChatTemplate
from specdec_core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def read_prompts(file: Path, media: MediaReader | None = None, directory: Path | None = None) -> list[dict[str, Any]]:
    """One record per line, `{"id", "conversations", ...}` with its other keys kept; the line's number if it has no id.

    `media` reads the images, each of which is looked at; None: the target reads text only. Relative paths of images
    become such as begin at `directory`, by default that of `file`. Raises UserErrors with the first bad lines: those
    that are no conversation, have no question, hold what the target does not read or repeat an id (an interrupted run
    could not tell where it was), and UserError if the file cannot be read or is empty.
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
            messages = line.parsed.templated(media.processor.markers if media else ())
            if not any(message["role"] == "user" for message in messages):
                raise LineError("no question", "has no message of the user, so there is nothing to answer")
            if name in lines_of:
                raise LineError("repeated id", f'has the id "{name}" of line {lines_of[name]}; give each its own')
            if media is not None:
                media.look(line.parsed.media, file.parent)
        except LineError as error:
            problems.append(Problem(line.file, line.number, error.reason, error.message))
            continue
        lines_of[name] = line.number
        for message, given in zip(messages, line.parsed.messages, strict=True):
            if given.media:
                message["content"] = moved(given.content, file.parent, directory or file.parent)
        others = {k: v for k, v in json.loads(line.raw).items() if k not in (*MESSAGE_KEYS, "id", "truncated")}
        records.append({"id": name, **others, "conversations": messages})
    raise_problems(problems)
    if not records:
        raise UserError(f"{file}: holds no prompt; every line is blank")
    return records


class PromptReader:
    """Messages of a prompt's record to what a target reads before it answers."""

    def __init__(self, template: ChatTemplate, media: MediaReader | None = None, directory: Path = Path()) -> None:
        """`directory` is where relative paths of images begin."""
        self.template = template
        self.media = media
        self.directory = directory

    def ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids, with what stands for images and the generation prompt. Raises LineError as `ChatTemplate` does."""
        conversation = _conversation(messages)
        rendering = self.template.prompt(conversation)
        if self.media is not None:
            seen = self.media.look(conversation.media, self.directory)
            rendering = rendering.replaced([seen[index].replacement for index in rendering.media])
        (encoded,) = self.template.encode([rendering])
        ids: list[int] = encoded.ids.tolist()
        return ids

    def inputs(self, messages: Sequence[Mapping[str, Any]]) -> Mapping[str, Tensor]:
        """The target's inputs for the images, read anew. Raises LineError if one cannot be read."""
        if self.media is None:
            return {}
        conversation = _conversation(messages)
        order = self.template.prompt(conversation).media
        return self.media.inputs([conversation.media[index] for index in order], self.directory)


def _conversation(messages: Sequence[Mapping[str, Any]]) -> Conversation:
    def message(given: Mapping[str, Any]) -> Message:
        extras = {key: value for key, value in given.items() if key not in ("role", "content")}
        return Message(given["role"], given["content"], extras=extras)

    return Conversation(tuple(map(message, messages)))


def moved(content: str | list[dict[str, Any]], old: Path, new: Path) -> list[dict[str, Any]]:
    """The parts of a message with relative paths from `old` as such from `new`."""
    assert isinstance(content, list)
    old, new = old.resolve(), new.resolve()

    def seen(source: str) -> str:
        relative = local_path(source, Path()) is not None and not source.startswith(("/", "file:"))
        return os.path.relpath(old / source, new) if relative and old != new else source

    return [with_sources(part, seen) for part in content]
