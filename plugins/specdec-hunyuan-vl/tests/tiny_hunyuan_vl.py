"""Tiny random models of the family, as directories with weights, tokenizer and processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers.models.hunyuan_vl.image_processing_pil_hunyuan_vl import HunYuanVLImageProcessorPil

from specdec_core.testing import save_processor, save_random_model, save_tokenizer

VOCAB = 512
TOKENS = {"image_start_token": "<img>", "image_token": "<image>", "image_end_token": "</img>"}
TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FOUR_AXES = {
    "rope_type": "xdrope",
    "rope_theta": 10000.0,
    "alpha": 100.0,
    "factor": 1.0,
    "xdrope_section": [2, 2, 2, 2],
}
"""As published models write it: a base stretched by alpha, and the family's own name for the sections."""
THREE_AXES = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]}
EYES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "max_image_size": 32,
}


def save(directory: Path, rope: dict[str, Any], **text: Any) -> None:
    """Save a seeded random model with its tokenizer and processor."""
    tokenizer = save_tokenizer(directory, VOCAB, special_tokens=TOKENS, shown={"image": "<img><image></img>"})
    config = transformers.HunYuanVLConfig(
        text_config={**TEXT, "rope_parameters": rope, **text},
        vision_config=EYES,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    save_random_model(config, directory)
    size = {"shortest_edge": 256, "longest_edge": 2048}
    save_processor(directory, config, HunYuanVLImageProcessorPil(patch_size=4, merge_size=2, size=size))
