"""From messages to tokens, and from tokens to text as they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdec_core.data.template import ChatTemplate
from specdec_core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from specdec_core.target.base import Target

# What a decoder writes for bytes that are not, or not yet, a character.
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class PromptEncoder:
    """Renders messages as the training data was rendered, ready for the target's answer."""

    def __init__(self, target: Target, chat_template: Path | None = None) -> None:
        """`chat_template` is a Jinja file in place of the tokenizer's own. Raises UserError if there is neither."""
        self.tokenizer = target.tokenizer
        self.source = ChatTemplate(target.tokenizer, target.facts.stop_token_ids, chat_template).source

    def encode(self, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        """Token ids of the messages and the generation prompt. Raises UserError if the template refuses them."""
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=self.source,
                add_generation_prompt=True,
                tokenize=False,
            )
        except Exception as error:  # templates are programs and fail in all the ways that programs do
            raise UserError(f"the chat template refuses the messages: {error}") from error
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])


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
