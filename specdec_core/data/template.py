"""From a conversation to tokens and a loss mask.

The rule: every answer is supervised once, in the text that the target would have in front of it when serving.
Let P be the rendering of all messages before an answer with the generation prompt, and R the rendering up to and
including the answer. The answer's span starts at len(P) and ends right after the first stop token in it, since the
target writes no more than that. Most templates only ever append, so that one rendering of the whole conversation
holds all answers. A template that rewrites earlier turns (drops their thinking, say) yields one more sequence for
each answer that no later rendering begins with.

Each sequence is tokenised once, as a whole; a token is supervised if all its characters lie in a span. So where a
token joins the last character of the prompt with the first of the answer, it is not.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from specdec_core.data.conversations import Conversation, LineError
from specdec_core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PRIVATE_USE = [chr(code) for code in range(0xE000, 0xF900)]
NEVER = r"(?!)"

Messages = list[dict[str, Any]]
Span = tuple[int, int]


@dataclass(frozen=True)
class Rendering:
    """A text to learn from and the half-open character spans of the answers supervised in it."""

    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Encoded:
    """A tokenised rendering.

    ids   [n] int32
    mask  [n] bool  True where the token is supervised
    """

    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]


class ChatTemplate:
    """A tokenizer with the chat template and the stop tokens that its target is served with."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop_token_ids: Sequence[int], override: Path | None = None
    ) -> None:
        """`override` is a Jinja file in place of the tokenizer's template.

        Raises UserError if there is no template, if it is not valid Jinja, or if the tokenizer gives no offsets.
        """
        if not tokenizer.is_fast:
            raise UserError(
                f"the tokenizer of {tokenizer.name_or_path} has no tokenizer.json, without which the characters of a "
                "token are not known; convert it with transformers and save it beside the target"
            )
        self.tokenizer = tokenizer
        self.source = _template_source(tokenizer, override)
        self.stop_token_ids = tuple(sorted(set(stop_token_ids)))
        stops = sorted(filter(None, map(self._stop_text, self.stop_token_ids)), key=len, reverse=True)
        self._stop = re.compile("|".join(map(re.escape, stops)) or NEVER)
        self._backend = copy.deepcopy(tokenizer.backend_tokenizer)
        self._backend.no_truncation()
        self._backend.no_padding()
        # Some post-processors cut the space off a token's offsets; with no special tokens to add they do nothing else.
        self._backend.post_processor = None

    def fingerprint(self) -> str:
        """Hash of all that decides how a conversation becomes tokens and a mask."""
        parts = [self._backend.to_str(), self.tokenizer.special_tokens_map, self.source, self.stop_token_ids]
        return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()

    def render(self, conversation: Conversation) -> list[Rendering]:
        """The texts that teach every answer of a conversation once, each text ending with an answer.

        Raises LineError if the template refuses the conversation, or if a message holds more than text.
        """
        messages = conversation.templated()
        answers: list[tuple[str, Span]] = []
        for index, message in enumerate(conversation.messages):
            if message.role == "assistant":
                text = self._apply(messages[: index + 1])
                start, end = self._span(messages, index, text, message.truncated)
                answers.append((text[:end], (start, end)))
        renderings: list[Rendering] = []
        while answers:
            whole = answers[-1][0]
            renderings.append(Rendering(whole, tuple(span for text, span in answers if whole.startswith(text))))
            answers = [answer for answer in answers if not whole.startswith(answer[0])]
        return renderings[::-1]

    def encode(self, renderings: Sequence[Rendering]) -> list[Encoded]:
        """Tokens and loss mask of each rendering."""
        encodings = self._backend.encode_batch([r.text for r in renderings], add_special_tokens=False)
        return [
            self._mask(np.array(e.ids, dtype=np.int32), np.array(e.offsets, dtype=np.int64).reshape(-1, 2), r.spans)
            for e, r in zip(encodings, renderings, strict=True)
        ]

    def _mask(self, ids: NDArray[np.int32], offsets: NDArray[np.int64], spans: Sequence[Span]) -> Encoded:
        first, last = offsets.T
        stops = np.isin(ids, self.stop_token_ids)
        mask = np.zeros(len(ids), dtype=np.bool_)
        for start, end in spans:
            # A stop token may swallow whitespace that follows it (`rstrip` of an added token) and is supervised still.
            mask |= (start <= first) & (first < end) & ((last <= end) | stops)
        return Encoded(ids, mask)

    def _span(self, messages: Messages, index: int, text: str, truncated: bool) -> Span:
        """Where the answer `messages[index]` stands in `text`, the rendering of the messages up to it."""
        prompt = self._apply(messages[:index], add_generation_prompt=True) if index else None
        if prompt is not None and text.startswith(prompt):
            start = len(prompt)
        else:
            start, _ = self._content(messages, index, text)
        stop = self._stop.search(text, start)
        if stop is not None and not truncated:
            return start, stop.end()
        _, end = self._content(messages, index, text)
        return start, stop.end() if stop is not None and stop.start() < end else max(start, end)

    def _content(self, messages: Messages, index: int, text: str) -> Span:
        """Where the answer's content stands, found by rendering a sentinel in its place."""
        everything = json.dumps(messages, ensure_ascii=False)
        sentinel = next(char for char in PRIVATE_USE if char not in everything)
        marked = self._apply([*messages[:index], {**messages[index], "content": sentinel}])
        before, found, after = marked.partition(sentinel)
        if not found:
            raise LineError("not in the template", f"the chat template does not show message {index}, an answer")
        start = _common_prefix(before, text)
        return start, len(text) - _common_prefix(after[::-1], text[start:][::-1])

    def _apply(self, messages: Messages, add_generation_prompt: bool = False) -> str:
        try:
            rendered: str = self.tokenizer.apply_chat_template(
                messages, chat_template=self.source, add_generation_prompt=add_generation_prompt, tokenize=False
            )
        except Exception as error:
            # Templates are programs: besides raising on purpose they fail in all the ways that Python expressions can.
            message = f"the chat template refuses this conversation: {error}"
            raise LineError("refused by the chat template", message) from error
        return rendered

    def _stop_text(self, token: int) -> str:
        added = self.tokenizer.added_tokens_decoder.get(token)
        return added.content if added is not None else str(self.tokenizer.decode([token]))


def _common_prefix(one: str, other: str) -> int:
    """How many characters two strings share at their beginning."""
    shorter = min(len(one), len(other))
    return next((at for at in range(shorter) if one[at] != other[at]), shorter)


def _template_source(tokenizer: PreTrainedTokenizerBase, override: Path | None) -> str:
    if override is not None:
        try:
            source, place = override.read_text(encoding="utf-8"), str(override)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"data.chat_template: cannot read {override}: {error}") from error
    else:
        try:
            source, place = tokenizer.get_chat_template(), f"the tokenizer of {tokenizer.name_or_path}"
        except ValueError as error:
            raise UserError(
                f"the tokenizer of {tokenizer.name_or_path} has no chat template; "
                "name a Jinja file in data.chat_template"
            ) from error
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}], chat_template=source, tokenize=False)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"chat template of {place}, line {error.lineno}: {error.message}") from error
    except Exception:
        pass  # Valid Jinja that refuses this probe may well accept the conversations.
    return source
