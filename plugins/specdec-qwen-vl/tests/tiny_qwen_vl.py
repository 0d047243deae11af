"""Tiny random models of the families, as directories with weights, tokenizer and processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils import is_torchvision_available

from specdec_core.testing import save_processor, save_random_model, save_tokenizer

VOCAB = 512
TOKENS = {
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
}
SHOWN = {kind: f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("image", "video")}
TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EYES: dict[str, Any] = {
    "depth": 3,
    "num_heads": 4,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "initializer_range": 0.1,
}
SIZE = {"shortest_edge": 64, "longest_edge": 2048}


def config_of(family: str, **text: Any) -> Any:
    """The config of a tiny model, for token ids that `save` fills in; `text` changes the language model's."""
    text = {**TEXT, **text}
    if family == "qwen2_vl":
        eyes = {**EYES, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
        return transformers.Qwen2VLConfig(text_config=text, vision_config=eyes)
    if family == "qwen2_5_vl":
        # One layer sees windows of 2 x 2 merged patches, the others all of an image.
        windows = {"window_size": 16, "fullatt_block_indexes": [0, 2], "tokens_per_second": 2}
        eyes = {**EYES, **windows, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48}
        return transformers.Qwen2_5_VLConfig(text_config=text, vision_config=eyes)
    # Images are added to the states after each layer, the last one included.
    text["num_hidden_layers"] = 3
    deep = {"deepstack_visual_indexes": [0, 1, 2], "num_position_embeddings": 64}
    eyes = {**EYES, **deep, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48}
    if family == "qwen3_vl":
        return transformers.Qwen3VLConfig(text_config={**text, "head_dim": 16}, vision_config=eyes)
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
    return transformers.Qwen3VLMoeConfig(text_config={**text, **experts}, vision_config=eyes)


def save(family: str, directory: Path, **text: Any) -> None:
    """Save a seeded random model of a family with its tokenizer and processor."""
    tokenizer = save_tokenizer(directory, VOCAB, special_tokens=TOKENS, shown=SHOWN)
    config = config_of(family, **text)
    for name in ("image_token", "video_token", "vision_start_token", "vision_end_token"):
        setattr(config, f"{name}_id", tokenizer.convert_tokens_to_ids(TOKENS[name]))
    save_random_model(config, directory)
    image_processor = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2, size=SIZE)
    save_processor(directory, config, image_processor, _video_processor(family))


def _video_processor(family: str) -> Any:
    if not is_torchvision_available():
        return None
    kind = transformers.Qwen3VLVideoProcessor if "3" in family else transformers.Qwen2VLVideoProcessor
    return kind(patch_size=4, merge_size=2, temporal_patch_size=2, size=SIZE)
