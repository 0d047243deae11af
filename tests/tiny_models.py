"""Tiny random models of several families, as directories with weights and a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers

from specdec_core.testing.family import save_random_model
from specdec_core.testing.tokenizer import save_tokenizer

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


def save_model(family: str, directory: Path) -> None:
    """Save a seeded random model of a family with its tokenizer."""
    save_tokenizer(directory, VOCAB)
    save_random_model(FAMILIES[family](), directory)
