"""The contract of a backbone, for models that differ in what a backbone has to know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from specdec_core.testing import BackboneContract, save_random_model, save_tokenizer
from specdec_core.testing.tokenizer import END_OF_TEXT

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


class TestLlama(BackboneContract):
    name = "causal-lm"

    def make_target(self, directory: Path) -> None:
        # Answers end with a token that only the chat template names.
        save_tokenizer(directory, SIZES["vocab_size"], eos_token=END_OF_TEXT)
        save_random_model(transformers.LlamaConfig(**SIZES), directory)


class TestWindowsAndTiedHead(BackboneContract):
    name = "causal-lm"

    def make_target(self, directory: Path) -> None:
        save_tokenizer(directory, SIZES["vocab_size"])
        config = transformers.Qwen2Config(
            **SIZES,
            tie_word_embeddings=True,
            use_sliding_window=True,
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention"] * 2,
        )
        save_random_model(config, directory)


class TestScaledEmbeddingsAndCappedLogits(BackboneContract):
    name = "causal-lm"

    def make_target(self, directory: Path) -> None:
        save_tokenizer(directory, SIZES["vocab_size"])
        config = transformers.Gemma2Config(
            **SIZES,
            head_dim=32,
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention"] * 2,
            final_logit_softcapping=5.0,
            attn_logit_softcapping=3.0,
        )
        save_random_model(config, directory)


class TestFusedProjections(BackboneContract):
    name = "causal-lm"

    def make_target(self, directory: Path) -> None:
        save_tokenizer(directory, SIZES["vocab_size"])
        save_random_model(transformers.Phi3Config(**SIZES), directory)
