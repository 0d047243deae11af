"""Tiny random models of several families, as directories with weights and a tokenizer."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = (
    "the a of to and in is it for on with as at by from red blue green seven eight nine apple river mountain "
    "code prints counts adds returns loop list number word answer question because therefore small large quick"
)
VOCAB = 512

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
WINDOW = 6
FOUR = {**SIZES, "num_hidden_layers": 4}
ALTERNATING = ["sliding_attention", "full_attention"] * 2

FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "qwen2": lambda: transformers.Qwen2Config(
        **FOUR, use_sliding_window=True, sliding_window=WINDOW, layer_types=ALTERNATING
    ),
    "qwen3": lambda: transformers.Qwen3Config(**FOUR, head_dim=32, tie_word_embeddings=True),
    "mistral": lambda: transformers.MistralConfig(**FOUR, sliding_window=WINDOW),
    "gemma2": lambda: transformers.Gemma2Config(
        **FOUR,
        head_dim=16,
        sliding_window=WINDOW,
        layer_types=ALTERNATING,
        final_logit_softcapping=5.0,
        attn_logit_softcapping=3.0,
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **FOUR, head_dim=16, sliding_window=WINDOW, layer_types=ALTERNATING, query_pre_attn_scalar=16
    ),
    "cohere": lambda: transformers.CohereConfig(**FOUR, logit_scale=0.25),
    "granite": lambda: transformers.GraniteConfig(**FOUR, logits_scaling=4.0, embedding_multiplier=3.0),
    "olmo2": lambda: transformers.Olmo2Config(**FOUR),
    "phi": lambda: transformers.PhiConfig(**FOUR),
    "phi3": lambda: transformers.Phi3Config(**FOUR),
}


def sentences(count: int, seed: int) -> list[str]:
    """Nonsense made of a few words, numbers included."""
    rng = random.Random(seed)
    return [
        " ".join(rng.choice([*TEXT.split(), str(rng.randrange(100))]) for _ in range(rng.randint(4, 12))) + "."
        for _ in range(count)
    ]


def save_tokenizer(directory: Path) -> None:
    """Train a byte-level BPE tokenizer with a ChatML template and save it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sentences(400, seed=0) + ["user assistant system\n"] * 20, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(directory)


def save_model(family: str, directory: Path) -> None:
    """Save a seeded random model whose norms and biases are random too."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family](), dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.2 * torch.randn_like(parameter)
        model.save_pretrained(directory)
