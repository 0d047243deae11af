"""A tiny tokenizer with a chat template, and text for it."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VISION_TEMPLATE = CHAT_TEMPLATE.replace(
    "{{ message['content'] }}",
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}{{ shown[part['type']] }}{% endif %}"
    "{% endfor %}{% endif %}",
)
TEXT = (
    "the a of to and in is it for on with as at by from red blue green seven eight nine apple river mountain "
    "code prints counts adds returns loop list number word answer question because therefore small large quick"
)
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
"""The special tokens; their ids are 0, 1 and 2."""


def sentences(count: int, seed: int) -> list[str]:
    """Nonsense made of a few words, numbers included."""
    rng = random.Random(seed)
    return [
        " ".join(rng.choice([*TEXT.split(), str(rng.randrange(100))]) for _ in range(rng.randint(4, 12))) + "."
        for _ in range(count)
    ]


def tiny_tokenizer(
    vocab_size: int,
    eos_token: str = TURN_END,
    special_tokens: Mapping[str, str] | None = None,
    shown: Mapping[str, str] | None = None,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template; `vocab_size` is at least 259: bytes and special tokens.

    special_tokens  more of them by the name that a family's processor knows them by, `image_token` for instance
    shown           what the template writes for a part of a message that is no text, by its type
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    more = dict(special_tokens or {})
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(more),
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(400, seed=0) + ["user assistant system\n"] * 20, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=TURN_START,
        eos_token=eos_token,
        pad_token=END_OF_TEXT,
        extra_special_tokens=more,
    )
    fast.chat_template = (
        "{% set shown = " + json.dumps(dict(shown)) + " %}" + VISION_TEMPLATE if shown else CHAT_TEMPLATE
    )
    return fast


def save_tokenizer(
    directory: Path,
    vocab_size: int,
    eos_token: str = TURN_END,
    special_tokens: Mapping[str, str] | None = None,
    shown: Mapping[str, str] | None = None,
) -> PreTrainedTokenizerFast:
    """Save `tiny_tokenizer` where a model is saved, and return it."""
    tokenizer = tiny_tokenizer(vocab_size, eos_token, special_tokens, shown)
    tokenizer.save_pretrained(directory)
    return tokenizer
