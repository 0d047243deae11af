"""On-policy conversations: a model answers prompts, and its own answers become training text.

A prompt record is `{"id": ..., "conversations": [user, ...]}`, with system messages first if there are
any. The answer to each user message is generated with all that came before in its context; assistant
messages that a record brings along are replaced. A conversation ends early at an answer that was cut
at the length limit (then the record says `"truncated": true`: the model did not emit the end of that
turn) and before an answer that runs in a loop; it is dropped when no answer is left.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from specdec_core.data.conversations import LineError
from specdec_core.data.prompts import PromptReader
from specdec_core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Generate = Callable[[list[list[int]], int, "list[Mapping[str, Tensor]]"], list[list[int]]]
"""From prompts' token ids, a limit and the inputs of their images to new tokens, the stop token included.

See `Target.generate`.
"""

_Item = TypeVar("_Item")

BATCHES_PER_CHUNK = 4
NGRAM = 8
NGRAM_REPEATS = 3
LINE_REPEATS = 2
LINE_LENGTH = 20


def generate_conversations(
    prompts: Sequence[Mapping[str, Any]],
    *,
    reader: PromptReader,
    generate: Generate,
    max_new_tokens: int,
    batch_size: int,
    drop_loops: bool = True,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the answered conversations in the order of their prompts.

    Prompts of like length are answered together, but sorted only within a chunk of a few batches,
    so that what has been yielded is always a fair sample. After each chunk `on_progress` is told
    how many prompts have been handled; those not yielded by then were dropped.

    Raises UserError if the chat template refuses a prompt, or an image can no longer be read.
    """
    tokenizer = reader.template.tokenizer
    handled = 0
    for chunk in _batches(prompts, BATCHES_PER_CHUNK * batch_size):
        dialogues = [_Dialogue(prompt) for prompt in chunk]
        waiting = [dialogue for dialogue in dialogues if dialogue.questions]
        while waiting:
            for dialogue in waiting:
                dialogue.ask(reader)
            waiting.sort(key=lambda dialogue: len(dialogue.prompt_ids))
            for batch in _batches(waiting, batch_size):
                ids = [dialogue.prompt_ids for dialogue in batch]
                extras = [dialogue.inputs(reader) for dialogue in batch]
                answers = generate(ids, max_new_tokens, extras if any(extras) else [])
                for dialogue, answer in zip(batch, answers, strict=True):
                    dialogue.answer(answer, tokenizer, max_new_tokens, drop_loops)
            waiting = [dialogue for dialogue in waiting if dialogue.questions]
        yield from (dialogue.record() for dialogue in dialogues if dialogue.answered)
        handled += len(chunk)
        if on_progress:
            on_progress(handled)


def _batches(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def is_loop(tokens: Sequence[int], text: str) -> bool:
    """Tell whether an answer repeats itself: one run of tokens or one long line, over and over."""
    ngrams = Counter(zip(*(tokens[start:] for start in range(NGRAM)), strict=False))
    lines = Counter(line.strip() for line in text.splitlines())
    return any(count > NGRAM_REPEATS for count in ngrams.values()) or any(
        count > LINE_REPEATS for line, count in lines.items() if len(line) >= LINE_LENGTH
    )


def remaining_prompts(prompts: Sequence[Mapping[str, Any]], output: Path) -> Sequence[Mapping[str, Any]]:
    """Return the prompts still to be answered, given what an interrupted run has written.

    A half-written last line is cut off the file. Conversations stand in the order of their prompts,
    so everything up to the last one written has been handled, the dropped ones too. Raises UserError, and
    changes nothing, if the file holds anything else.
    """
    content = output.read_bytes() if output.exists() else b""
    complete, newline, rest = content.rpartition(b"\n")
    ids = [prompt["id"] for prompt in prompts]
    done = 0
    if newline:
        last = _id_of(complete.rpartition(b"\n")[2])
        if last is None:
            raise _foreign(output)
        if last not in ids:
            raise UserError(
                f"{output}: its last conversation, {last!r}, is not among the prompts; "
                "give the prompts that it was made from, or another output file"
            )
        done = ids.index(last) + 1
    if rest:
        if not rest.startswith(b"{"):
            raise _foreign(output)
        with output.open("r+b") as file:
            file.truncate(len(complete) + len(newline))
    return prompts[done:]


def _id_of(line: bytes) -> Any:
    """The id of a line's record; None if the line is no record with one."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record.get("id") if isinstance(record, dict) else None


def _foreign(output: Path) -> UserError:
    return UserError(f"{output} exists and holds something else than answered prompts; give another output file")


class _Dialogue:
    """A conversation in the making."""

    def __init__(self, prompt: Mapping[str, Any]) -> None:
        self.prompt = prompt
        given = prompt["conversations"]
        self.messages = [dict(message) for message in given if message["role"] == "system"]
        self.questions = [dict(message) for message in given if message["role"] == "user"]
        self.prompt_ids: list[int] = []
        self.answered = False
        self.truncated = False

    def ask(self, reader: PromptReader) -> None:
        """Render everything up to the next answer."""
        with self._named():
            self.prompt_ids = reader.ids([*self.messages, self.questions[0]])

    def inputs(self, reader: PromptReader) -> Mapping[str, Tensor]:
        """The target's inputs for the images of what was asked last."""
        with self._named():
            return reader.inputs([*self.messages, self.questions[0]])

    def answer(self, tokens: list[int], tokenizer: Any, max_new_tokens: int, drop_loops: bool) -> None:
        """Take the answer to the question just asked, or end the conversation before it."""
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        if not text.strip() or (drop_loops and is_loop(tokens, text)):
            self.questions = []
            return
        self.answered = True
        question = self.questions.pop(0)
        self.truncated = len(tokens) >= max_new_tokens
        if self.truncated:
            self.questions = []
            text = text.rstrip("\N{REPLACEMENT CHARACTER}")
        self.messages += [question, {"role": "assistant", "content": text}]

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except LineError as error:
            raise UserError(f'prompt "{self.prompt["id"]}": {error.message}') from error

    def record(self) -> dict[str, Any]:
        """Return the prompt's record with the answers in it."""
        record = {**self.prompt, "conversations": self.messages}
        if self.truncated:
            record["truncated"] = True
        return record
