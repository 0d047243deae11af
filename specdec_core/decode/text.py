"""From messages to tokens, and from tokens to text as they come."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from specdec_core.data.conversations import LineError, parse_conversation
from specdec_core.data.template import ChatTemplate, Rendering
from specdec_core.decode.loop import prompt_batch
from specdec_core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from specdec_core.data.batch import Batch
    from specdec_core.data.media_reader import MediaReader
    from specdec_core.target.base import Target

# What a decoder writes for bytes that are not, or not yet, a character.
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class PromptEncoder:
    """Renders messages as the training data was rendered, ready for the target's answer."""

    def __init__(self, target: Target, chat_template: Path | None = None, media: MediaReader | None = None) -> None:
        """`chat_template` is a Jinja file in place of the tokenizer's own; `media` reads images for a target that
        takes them. Raises UserError if there is no template."""
        markers = {} if media is None else media.processor.markers
        self.template = ChatTemplate(target.tokenizer, target.facts.stop_token_ids, chat_template, markers)
        self.media = media

    def encode(self, messages: Sequence[Mapping[str, Any]], directory: Path = Path()) -> Batch:
        """The messages, written as in a line of training data, with the generation prompt: one row.

        `directory` is where relative paths of images begin. Raises UserError if the messages are malformed, if the
        template refuses them, or if an image cannot be read.
        """
        line = json.dumps({"messages": [dict(message) for message in messages]}).encode()
        try:
            conversation = parse_conversation(line, answered=False)
            rendering = self.template.prompt(conversation)
            if self.media is None:
                return prompt_batch(self._tokens(rendering))
            named = conversation.media
            read = self.media.read([named[index] for index in rendering.media], directory)
            ids = self._tokens(rendering.replaced(read.replacements))
            return prompt_batch(ids, self.media.positions(ids, read.inputs), read.inputs)
        except LineError as error:
            raise UserError(error.message) from error

    def _tokens(self, rendering: Rendering) -> Tensor:
        """[S] int64."""
        (encoded,) = self.template.encode([rendering])
        return torch.from_numpy(encoded.ids).long()


class TextStream:
    """Detokenises one text token by token; the pieces join to the decoding of the whole.

    A piece is held back while it ends within a character. Each call decodes only the tokens since the piece before
    last: enough for tokenizers whose text depends on the preceding token. Special tokens give no text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.context = 0
        self.shown = 0

    def push(self, token: int) -> str:
        """The text that `token` completes; may be empty."""
        self.ids.append(token)
        piece = self._unshown()
        if not piece or piece.endswith(INCOMPLETE):
            return ""
        self.context, self.shown = self.shown, len(self.ids)
        return piece

    def finish(self) -> str:
        """What is held back when the text ends: bytes that never became a character."""
        piece = self._unshown()
        self.context = self.shown = len(self.ids)
        return piece

    def _unshown(self) -> str:
        before = self._decode(self.ids[self.context : self.shown])
        return self._decode(self.ids[self.context :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text
