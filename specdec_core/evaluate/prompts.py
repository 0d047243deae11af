"""Prompts to measure with."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from specdec_core import packages
from specdec_core.data.conversations import (
    MAX_REPORTED,
    MEDIA_KINDS,
    MESSAGE_KEYS,
    Conversation,
    LineError,
    open_file,
    parse_conversation,
)
from specdec_core.errors import UserError, UserErrors
from specdec_core.evaluate.config import PLACEHOLDER, JsonlPromptsConfig

PROMPT_KEYS = (*MESSAGE_KEYS, "turns", "prompt", "question")
ID_KEYS = ("id", "question_id", "task_id")

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Prompt:
    """A question to the target.

    messages   as in a line of training data; they end with a user's turn, which may hold images
    directory  where relative paths of images begin
    """

    id: str
    category: str
    messages: tuple[dict[str, Any], ...]
    directory: Path = Path()

    @property
    def text(self) -> str:
        """What the user says."""
        content = self.messages[-1]["content"]
        return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


class PromptPack(ABC):
    """A set of prompts (plugin kind "prompts"). Made with the plugin's validated options."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def __iter__(self) -> Iterator[Prompt]:
        """The prompts, always in the same order. Raises UserError if they cannot be read."""


class JsonlPrompts(PromptPack):
    """One prompt a line: conversations as for training, `{"turns": [...]}` or `{"prompt": "..."}`.

    Of a conversation, what stands before the first answer is used: system messages and the first question.
    """

    options: JsonlPromptsConfig

    def __iter__(self) -> Iterator[Prompt]:
        """The prompts in the file's order. Raises UserErrors with file and line of the first bad lines."""
        path = resolve_path(self.options.path)
        prompts: list[Prompt] = []
        problems: list[str] = []
        with open_file(path) as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                try:
                    prompts.append(self._parse(line, f"line-{number}"))
                except LineError as error:
                    problems.append(f"{path}:{number}: {error.message}")
                if len(problems) == MAX_REPORTED:
                    break
        if problems:
            raise UserErrors(problems)
        if not prompts:
            raise UserError(f"{path} holds no prompts")
        return iter(spread(prompts, self.options.limit))

    def _parse(self, line: bytes, default_id: str) -> Prompt:
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except ValueError as error:
            raise LineError("not JSON", f"not valid JSON: {error}") from error
        if not isinstance(record, dict):
            raise LineError("not an object", 'must be an object such as {"prompt": "..."}')
        messages = self._question(self._conversation(record))
        category = self.options.category or record.get("category") or _stem(self.options.path)
        identity = next((record[key] for key in ID_KEYS if key in record), default_id)
        return Prompt(str(identity), str(category), messages, resolve_path(self.options.path).parent)

    def _conversation(self, record: dict[str, Any]) -> Conversation:
        """The line checked by the rules for training data, whatever the key of its prompt."""
        wanted = (self.options.field,) if self.options.field else PROMPT_KEYS
        key = next((key for key in wanted if key in record), None)
        if key is None:
            raise LineError(
                "missing key",
                f"has none of the keys {', '.join(wanted)}; the option field says which one is the prompt",
            )
        value = record[key]
        if key == "turns" and isinstance(value, list) and value:
            value = value[0]
        listed = value if isinstance(value, list) else [{"role": "user", "content": value}]
        return parse_conversation(json.dumps({"messages": listed}).encode(), answered=False)

    def _question(self, conversation: Conversation) -> tuple[dict[str, Any], ...]:
        first = next((i for i, message in enumerate(conversation.messages) if message.role == "user"), None)
        if first is None:
            raise LineError("no question", "has no message of the user, so there is nothing to answer")
        asked = conversation.messages[: first + 1]
        Conversation(asked).templated(MEDIA_KINDS.values())  # refuses parts that no target reads
        *before, question = [{**m.extras, "role": m.role, "content": m.content} for m in asked]
        if self.options.template:
            question["content"] = within(self.options.template, question["content"])
        return (*before, question)


def within(template: str, content: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """A message's content, a string or its parts, where `template` says {prompt}."""
    if isinstance(content, str):
        return template.replace(PLACEHOLDER, content)
    first, *others = template.split(PLACEHOLDER)
    parts = [{"type": "text", "text": first}]
    for text in others:
        parts += [*content, {"type": "text", "text": text}]
    return [part for part in parts if part.get("text") != ""]


def spread(items: Sequence[_Item], limit: int | None) -> Sequence[_Item]:
    """`limit` items spread evenly over a sequence: files are often sorted, and the first lines are of one kind."""
    if limit is None or limit >= len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def resolve_path(path: str) -> Path:
    """A path; `package:NAME/FILE` lies within an installed package, which is found and not imported.

    Raises UserError if there is no such package.
    """
    if not path.startswith(packages.PREFIX):
        return Path(path)
    name, file = packages.split(path)
    directory = packages.directory(name)
    if directory is None:
        raise UserError(
            f"{path}: there is no installed package {name}; pip install what provides it, or give the path of the file"
        )
    return directory / file


def _stem(path: str) -> str:
    return path.rsplit("/", 1)[-1].removesuffix(".gz").removesuffix(".jsonl")
