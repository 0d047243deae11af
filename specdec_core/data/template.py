"""From a conversation to tokens and a loss mask.

The rule: every answer is supervised once, in the text that the target would have in front of it when serving.
Let P be the rendering of all messages before an answer with the generation prompt, and R the rendering up to and
including the answer. The answer's span starts at len(P) and ends right after the first stop token in it, since the
target writes no more than that. Most templates only ever append, so that one rendering of the whole conversation
holds all answers. A template that rewrites earlier turns (drops their thinking, say) yields one more sequence for
each answer that no later rendering begins with.

Images and videos are markers in the rendered text until they have been read; then each is replaced by what stands for
it in the target's input, and the spans shift.

Each sequence is tokenised once, as a whole; a token is supervised if all its characters lie in a span. So where a
token joins the last character of the prompt with the first of the answer, it is not.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from specdec_core.data.conversations import Conversation, LineError
from specdec_core.data.media import Medium, MediumKind
from specdec_core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PRIVATE_USE = [chr(code) for code in range(0xE000, 0xF900)]
NEVER = r"(?!)"

Messages = list[dict[str, Any]]
Span = tuple[int, int]


@dataclass(frozen=True)
class Rendering:
    """A text and the half-open character spans of the answers supervised in it.

    media   for each image or video in the text, in its order, an index into `Conversation.media`
    places  the span of each of them: its marker, or what has replaced it
    """

    text: str
    spans: tuple[Span, ...]
    media: tuple[int, ...] = ()
    places: tuple[Span, ...] = ()

    def replaced(self, replacements: Sequence[str]) -> Rendering:
        """The same with the text that stands for each of its media, in their order, in place of the markers."""
        pieces: list[str] = []
        ends, moved = [0], [0]
        for (start, end), replacement in zip(self.places, replacements, strict=True):
            pieces += [self.text[ends[-1] : start], replacement]
            ends.append(end)
            moved.append(moved[-1] + len(replacement) - (end - start))
        text = "".join([*pieces, self.text[ends[-1] :]])

        def shifted(at: int) -> int:
            return at + moved[bisect_right(ends, at) - 1]

        def all_shifted(spans: Iterable[Span]) -> tuple[Span, ...]:
            return tuple((shifted(start), shifted(end)) for start, end in spans)

        return Rendering(text, all_shifted(self.spans), self.media, all_shifted(self.places))


@dataclass(frozen=True)
class Encoded:
    """A tokenised rendering.

    ids     [n] int32
    mask    [n] bool  True where the token is supervised; never within a medium
    places  the half-open span of tokens of each medium
    """

    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    places: tuple[Span, ...] = ()

    def cut(self, max_length: int) -> Encoded:
        """The first tokens, at most `max_length`.

        A sequence with media then ends with its last supervised token. So none of them is cut, and no work is left to
        be done for one that no answer follows.
        """
        if len(self.ids) <= max_length:
            return self
        end = max_length
        if self.places:
            supervised = np.flatnonzero(self.mask[:max_length])
            end = int(supervised[-1]) + 1 if len(supervised) else 0
        return Encoded(self.ids[:end], self.mask[:end], tuple(place for place in self.places if place[1] <= end))


class ChatTemplate:
    """A tokenizer with the chat template and the stop tokens that its target is served with."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop_token_ids: Sequence[int],
        override: Path | None = None,
        markers: Mapping[MediumKind, str] | None = None,
    ) -> None:
        """`override` is a Jinja file in place of the tokenizer's template; `markers` are those of `MediaProcessor`.

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
        self._stop = _any_of(filter(None, map(self._stop_text, self.stop_token_ids)))
        self._backend = copy.deepcopy(tokenizer.backend_tokenizer)
        self._backend.no_truncation()
        self._backend.no_padding()
        # Some post-processors cut the space off a token's offsets; with no special tokens to add they do nothing else.
        self._backend.post_processor = None
        self.markers = dict(markers or {})
        self._marker = _any_of(self.markers.values())
        self._lists = bool(self.markers) and self._reads_lists_only()

    def fingerprint(self) -> str:
        """Hash of all that decides how a conversation becomes tokens and a mask."""
        parts: list[Any] = [self._backend.to_str(), self.tokenizer.special_tokens_map, self.source, self.stop_token_ids]
        parts += [self.markers] if self.markers else []
        return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()

    def render(self, conversation: Conversation) -> list[Rendering]:
        """The texts that teach every answer of a conversation once, each text ending with an answer.

        Raises LineError if the template refuses the conversation, if a message holds what the target does not read, or
        if the text does not show each of the media once.
        """
        messages = self._templated(conversation)
        answers: list[tuple[str, Span, tuple[Medium, ...]]] = []
        for index, message in enumerate(conversation.messages):
            if message.role == "assistant":
                text = self._apply(messages[: index + 1])
                start, end = self._span(messages, index, text, message.truncated)
                media = Conversation(conversation.messages[:index]).media
                answers.append((text[:end], (start, end), media))
        renderings: list[Rendering] = []
        while answers:
            whole, _, media = answers[-1]
            spans = tuple(span for text, span, _ in answers if whole.startswith(text))
            renderings.append(self._placed(whole, spans, media))
            answers = [answer for answer in answers if not whole.startswith(answer[0])]
        return renderings[::-1]

    def prompt(self, conversation: Conversation) -> Rendering:
        """All messages with the generation prompt, as the target reads them before it answers.

        Raises LineError as `render` does.
        """
        text = self._apply(self._templated(conversation), add_generation_prompt=True)
        return self._placed(text, (), conversation.media)

    def encode(self, renderings: Sequence[Rendering]) -> list[Encoded]:
        """Tokens and loss mask of each rendering."""
        encodings = self._backend.encode_batch([r.text for r in renderings], add_special_tokens=False)
        return [
            self._mask(np.array(e.ids, dtype=np.int32), np.array(e.offsets, dtype=np.int64).reshape(-1, 2), r)
            for e, r in zip(encodings, renderings, strict=True)
        ]

    def _mask(self, ids: NDArray[np.int32], offsets: NDArray[np.int64], rendering: Rendering) -> Encoded:
        first, last = offsets.T
        stops = np.isin(ids, self.stop_token_ids)
        mask = np.zeros(len(ids), dtype=np.bool_)
        for start, end in rendering.spans:
            # A stop token may swallow whitespace that follows it (`rstrip` of an added token) and is supervised still.
            mask |= (start <= first) & (first < end) & ((last <= end) | stops)
        places = [
            (int(np.searchsorted(last, start, side="right")), int(np.searchsorted(first, end)))
            for start, end in rendering.places
        ]
        for start, end in places:
            mask[start:end] = False
        return Encoded(ids, mask, tuple(places))

    def _templated(self, conversation: Conversation) -> Messages:
        """The messages in the form in which the template reads them."""
        for message in conversation.messages:
            for text in message.texts:
                if found := self._marker.search(text):
                    raise LineError(
                        "marker in the text",
                        f"a message holds {found[0]}, which stands for an image or a video; take it out of the text "
                        '(images are parts of type "image")',
                    )
        messages = conversation.templated(self.markers)
        return [{**m, "content": self._content_of(m["content"])} for m in messages]

    def _content_of(self, content: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
        return [{"type": "text", "text": content}] if self._lists and isinstance(content, str) else content

    def _reads_lists_only(self) -> bool:
        """Whether the template shows no content that is a string, as those of some vision models."""
        probe = "content"
        try:
            return probe not in self._apply([{"role": "user", "content": probe}])
        except LineError:
            return False

    def _placed(self, text: str, spans: tuple[Span, ...], media: Sequence[Medium]) -> Rendering:
        """A rendering with the places of `media`, all of which must stand in it."""
        kinds = {marker: kind for kind, marker in self.markers.items()}
        found = [(kinds[match[0]], match.span()) for match in self._marker.finditer(text)]
        indices: dict[MediumKind, Iterator[int]] = {}
        for kind, marker in self.markers.items():
            wanted = [index for index, medium in enumerate(media) if medium.kind == kind]
            written = sum(of_kind == kind for of_kind, _ in found)
            if written != len(wanted):
                raise LineError(
                    "media not in the template",
                    f"has {len(wanted)} {kind}s before an answer, where the template writes {marker} {written} times; "
                    "give a template that shows each of them once in data.chat_template",
                )
            indices[kind] = iter(wanted)
        return Rendering(
            text, spans, tuple(next(indices[kind]) for kind, _ in found), tuple(place for _, place in found)
        )

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
        marked = self._apply([*messages[:index], {**messages[index], "content": self._content_of(sentinel)}])
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


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Finds any of `texts`, the longest where several begin."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or NEVER)


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
