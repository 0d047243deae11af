"""Conversations as JSON lines: one object per line, checked one by one.

A line is `{"id": ..., "conversations": [{"role": ..., "content": ...}, ...]}`. "messages" is accepted in place of
"conversations", ShareGPT's "from"/"value" in place of "role"/"content". Content is a string or a list of parts
(`{"type": "text", "text": ...}`); a part may be an image, `{"type": "image", "image": ...}` or OpenAI's
`{"type": "image_url", "image_url": {"url": ...}}`, or a video as the images of its frames,
`{"type": "video", "video": [...], "fps": ...}`, in any turn but an answer. `"truncated": true` on an answer, or on the
whole conversation for its last answer, says that the answer was cut off: nothing then teaches the draft to stop there.
Other keys of a message are handed to the chat template as they are; other keys of the object are ignored.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

from specdec_core.data.media import Medium, MediumKind
from specdec_core.errors import UserError, UserErrors

OnError = Literal["error", "skip"]
MAX_REPORTED = 10

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
MESSAGE_KEYS = ("conversations", "messages")
# Keys under which an image part names its image: the and OpenAI's, then those of HF's processors.
IMAGE_KEYS = ("image", "image_url", "url", "path")
MEDIA_KINDS: Mapping[str, MediumKind] = {"image": "image", "image_url": "image", "video": "video"}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class LineError(UserError):
    """What is wrong with one line, without its place; `reason` is the short form under which it is counted."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        self.message = message
        super().__init__(message)


@dataclass(frozen=True)
class Problem:
    """A line that cannot be used."""

    file: str
    line: int
    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


@dataclass(frozen=True)
class Message:
    """One turn. `content` is a string or the list of parts as given; `extras` are the message's other keys."""

    role: str
    content: str | list[dict[str, Any]]
    truncated: bool = False
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def media(self) -> tuple[Medium, ...]:
        """The images and videos among the parts, in their order."""
        parts = [] if isinstance(self.content, str) else self.content
        return tuple(_medium(part) for part in parts if part["type"] in MEDIA_KINDS)

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts among the parts, in their order."""
        if isinstance(self.content, str):
            return (self.content,)
        return tuple(part["text"] for part in self.content if part["type"] == "text")

    def templated(self, kinds: Collection[MediumKind] = ()) -> str | list[dict[str, Any]]:
        """The content as chat templates read it: a string, or a list of parts if media are among them.

        Of a medium there is its kind alone. `kinds` are those that the target reads. Raises LineError for other parts.
        """
        if isinstance(self.content, str):
            return self.content
        parts: list[dict[str, Any]] = []
        for part in self.content:
            kind = MEDIA_KINDS.get(part["type"])
            if part["type"] == "text":
                parts.append({"type": "text", "text": part["text"]})
            elif kind in kinds:
                parts.append({"type": kind})
            else:
                read = " and ".join(["text", *(f"{kind}s" for kind in kinds)]) + ("" if kinds else " only")
                raise LineError(
                    f"content of type {part['type']}",
                    f'a message has a part of type "{part["type"]}", and this target reads {read}; '
                    "remove the part, or train for a backbone that takes such input",
                )
        return parts if any(part["type"] != "text" for part in parts) else "".join(self.texts)


@dataclass(frozen=True)
class Conversation:
    """A checked line."""

    messages: tuple[Message, ...]
    id: str | None = None

    @property
    def media(self) -> tuple[Medium, ...]:
        """The images and videos of all messages, in the order of the text."""
        return tuple(medium for message in self.messages for medium in message.media)

    def templated(self, kinds: Collection[MediumKind] = ()) -> list[dict[str, Any]]:
        """The messages as chat templates read them; see `Message.templated`."""
        return [{**m.extras, "role": m.role, "content": m.templated(kinds)} for m in self.messages]


@dataclass(frozen=True)
class Line:
    """A line that is not blank: its place, its bytes, and what they hold."""

    file: str
    number: int
    raw: bytes
    parsed: Conversation | Problem


def raise_problems(problems: Sequence[Problem], total: int | None = None) -> None:
    """Raise UserErrors with the first problems, if there are any. `total` is how many there are, where known."""
    if not problems:
        return
    shown = [str(problem) for problem in problems[:MAX_REPORTED]]
    more = (total or len(problems)) - len(shown)
    if more > 0:
        shown.append(f'… and {more} more; mend them, or set data.on_error = "skip" to leave such lines out')
    raise UserErrors(shown)


def read_conversations(
    files: Sequence[Path], on_error: OnError = "error", answered: bool = True
) -> tuple[list[Conversation], Counter[str]]:
    """All conversations of `files` (.jsonl or .jsonl.gz), and how many lines were skipped for which reason.

    Raises UserErrors with the first bad lines unless `on_error` is "skip", and UserError if a file cannot be read.
    `answered` asks for an assistant's turn in each conversation.
    """
    conversations: list[Conversation] = []
    problems: list[Problem] = []
    for line in read_lines(files, answered):
        if isinstance(line.parsed, Conversation):
            conversations.append(line.parsed)
        else:
            problems.append(line.parsed)
            if on_error == "error" and len(problems) == MAX_REPORTED:
                break
    if on_error == "error":
        raise_problems(problems)
    return conversations, Counter(problem.reason for problem in problems)


def read_lines(files: Sequence[Path], answered: bool = True) -> Iterator[Line]:
    """Every line of `files` that is not blank. Raises UserError if a file cannot be read."""
    for file in files:
        for number, raw in _raw_lines(file):
            if raw:
                yield Line(str(file), number, raw, _parse(raw, answered, str(file), number))


def _parse(raw: bytes, answered: bool, file: str, number: int) -> Conversation | Problem:
    try:
        return parse_conversation(raw, answered)
    except LineError as error:
        return Problem(file, number, error.reason, error.message)


def _raw_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    with open_file(file) as stream:
        for number, raw in enumerate(stream, start=1):
            yield number, (raw.removeprefix(BYTE_ORDER_MARK) if number == 1 else raw).rstrip()


@contextmanager
def open_file(file: Path) -> Iterator[IO[bytes]]:
    """Open a file, decompressed if its name ends in .gz. Raises UserError if it cannot be opened or read."""
    try:
        opener: Callable[..., Any] = gzip.open if file.suffix == ".gz" else open
        with opener(file, "rb") as stream:
            yield stream
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{file}: not a complete gzip file ({error}); copy or compress it again") from error
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error


def parse_conversation(raw: bytes, answered: bool = True) -> Conversation:
    """Check one line. Raises LineError that says what is wrong with it and where in it."""
    record = _load_json(raw)
    if not isinstance(record, dict):
        raise LineError("not an object", f'must be an object such as {{"conversations": [...]}}, found {_kind(record)}')
    key = next((key for key in MESSAGE_KEYS if key in record), None)
    if key is None:
        hint = _did_you_mean(record, MESSAGE_KEYS)
        raise LineError("missing key", f'has no key "conversations" (or "messages"){hint}')
    listed = record[key]
    if not isinstance(listed, list):
        raise LineError("wrong type", f"{key} must be a list of messages, found {_kind(listed)}")
    if not listed:
        raise LineError("no messages", f"{key} is empty")
    messages = [_parse_message(item, f"{key}[{index}]") for index, item in enumerate(listed)]
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if answered and not answers:
        raise LineError("no answer", f"{key} has no message of the assistant, so there is nothing to learn from it")
    if _truncated(record, "truncated") and answers:
        last = messages[answers[-1]]
        messages[answers[-1]] = Message(last.role, last.content, True, last.extras)
    identity = record.get("id")
    return Conversation(tuple(messages), None if identity is None else str(identity))


def _load_json(raw: bytes) -> Any:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        where = f"byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the line"
        raise LineError("not UTF-8", f"not UTF-8: {where}; save the file as UTF-8") from error
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise LineError("not JSON", f"not valid JSON: {error.msg} at column {error.pos + 1}") from error
    except RecursionError as error:
        raise LineError("not JSON", "not usable JSON: nested too deeply") from error
    except ValueError as error:
        raise LineError("not JSON", f"not usable JSON: {error}") from error
    if "\\u" in text:
        _check_surrogates(record)
    return record


def _check_surrogates(record: Any) -> None:
    """Half of a surrogate pair passes as JSON, but no tokenizer and no UTF-8 file can hold it."""
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise LineError(
            "not UTF-8", f"holds the escape \\u{half:04x}, half of a surrogate pair; write the character whole"
        ) from error


def _parse_message(item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        raise LineError("wrong type", f'{where} must be an object with "role" and "content", found {_kind(item)}')
    role_key = "from" if "from" in item and "role" not in item else "role"
    content_key = "value" if "value" in item and "content" not in item else "content"
    for key in (role_key, content_key):
        if key not in item:
            others = [other for other in item if other not in ("role", "content", "from", "value", "truncated")]
            raise LineError("missing key", f'{where} has no key "{key}"{_did_you_mean(others, (key,))}')
    role = _parse_role(item[role_key], f"{where}.{role_key}")
    extras = {key: value for key, value in item.items() if key not in (role_key, content_key, "truncated")}
    content = _parse_content(item[content_key], f"{where}.{content_key}", bool(extras.get("tool_calls")))
    if role == "assistant":
        _check_answer(content, f"{where}.{content_key}")
    blank = not content.strip() if isinstance(content, str) else not content
    if blank and role in ("user", "assistant") and not extras.get("tool_calls"):
        raise LineError("empty content", f"{where}.{content_key} is empty")
    return Message(role, content, _truncated(item, f"{where}.truncated"), extras)


def _parse_role(role: Any, where: str) -> str:
    if not isinstance(role, str):
        raise LineError("wrong type", f"{where} must be a string, found {_kind(role)}")
    if role not in ROLES:
        close = get_close_matches(role.lower(), ROLES, n=1)
        hint = f'did you mean "{close[0]}"?' if close else f"allowed: {', '.join(ROLES)}"
        raise LineError("unknown role", f'{where} is "{_shorten(role)}"; {hint}')
    return ROLES[role]


def _parse_content(content: Any, where: str, optional: bool) -> str | list[dict[str, Any]]:
    if content is None and optional:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise LineError("wrong type", f"{where} must be a string or a list of parts, found {_kind(content)}")
    for index, part in enumerate(content):
        _check_part(part, f"{where}[{index}]")
    if all(part["type"] == "text" for part in content):
        return "".join(part["text"] for part in content)
    return content


def _check_part(part: Any, where: str) -> None:
    if not isinstance(part, dict):
        raise LineError("wrong type", f'{where} must be an object with a "type", found {_kind(part)}')
    if not isinstance(part.get("type"), str):
        raise LineError("missing key", f'{where} has no "type" (such as "text" or "image")')
    if part["type"] == "text" and not isinstance(part.get("text"), str):
        raise LineError("missing key", f'{where} is of type "text" but has no string "text"')
    if MEDIA_KINDS.get(part["type"]) == "image":
        _check_image(part, where)
    elif part["type"] == "video":
        _check_video(part, where)


def _check_image(part: Mapping[str, Any], where: str) -> None:
    key = next((key for key in IMAGE_KEYS if key in part), None)
    if key is None:
        raise LineError(
            "missing key",
            f'{where} is of type "{part["type"]}" but names no image; '
            'add the key "image" with a path, an http(s) URL or a data URI',
        )
    value, place = part[key], f"{where}.{key}"
    if isinstance(value, dict):
        value, place = value.get("url"), f"{place}.url"
    _check_source(value, place)


def _check_video(part: Mapping[str, Any], where: str) -> None:
    frames = part.get("video")
    if not isinstance(frames, list) or not frames:
        found = "an empty list" if frames == [] else "nothing" if "video" not in part else _kind(frames)
        raise LineError(
            "wrong type", f"{where}.video must be the list of the video's frames, each an image, found {found}"
        )
    for index, frame in enumerate(frames):
        _check_source(frame, f"{where}.video[{index}]")
    fps = part.get("fps")
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < float("inf")):
        raise LineError("wrong type", f"{where}.fps must be a number above 0, the frames per second")


def _check_source(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise LineError(
            "wrong type", f"{where} must be a string, a path, an http(s) URL or a data URI, found {_kind(value)}"
        )
    if not value.strip():
        raise LineError("empty content", f"{where} is empty; name an image there")


def _check_answer(content: str | list[dict[str, Any]], where: str) -> None:
    for index, part in enumerate([] if isinstance(content, str) else content):
        if part["type"] in MEDIA_KINDS:
            raise LineError(
                "image in an answer",
                f'{where}[{index}] is of type "{part["type"]}", and targets answer in text; move it into a question',
            )


def _medium(part: Mapping[str, Any]) -> Medium:
    """What a checked part names."""
    if part["type"] == "video":
        return Medium("video", tuple(part["video"]), part.get("fps"))
    value = next(part[key] for key in IMAGE_KEYS if key in part)
    return Medium("image", (value["url"] if isinstance(value, dict) else value,))


def with_sources(part: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A checked part with `change` applied to each source of its medium, in their order; other parts as they are."""
    if part["type"] == "video":
        return {**part, "video": [change(frame) for frame in part["video"]]}
    if part["type"] not in MEDIA_KINDS:
        return dict(part)
    key = next(key for key in IMAGE_KEYS if key in part)
    value = part[key]
    return {**part, key: {**value, "url": change(value["url"])} if isinstance(value, dict) else change(value)}


def _truncated(item: Mapping[str, Any], where: str) -> bool:
    value = item.get("truncated", False)
    if not isinstance(value, bool):
        raise LineError("wrong type", f"{where} must be true or false, found {_kind(value)}")
    return value


def _did_you_mean(found: Any, wanted: Sequence[str]) -> str:
    for name in islice(found, 100):
        if get_close_matches(str(name).lower(), wanted, n=1, cutoff=0.75):
            return f'; is "{_shorten(str(name))}" a misspelling of it?'
    return ""


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
