"""A tiny random vision-language target with its processor, as a directory, and conversations about images."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tiny_vision import (
    END,
    IMAGE,
    MERGE,
    PATCH,
    START,
    VIDEO,
    asking,
    image_part,
    picture,
    text_part,
    vision_tokenizer,
    write_lines,
)
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from specdec_core.config.run import TargetSection
from specdec_core.data.images import ImageReader
from specdec_core.data.media_reader import MediaReader
from specdec_core.decode.text import PromptEncoder
from specdec_core.target.base import Target
from specdec_core.target.hf_media import without_videos
from specdec_core.testing.tokenizer import sentences
from specdec_qwen_vl.backbone import QwenVLBackbone
from specdec_qwen_vl.config import QwenVLConfig

MOST_TOKENS = 16
"""Of an image."""


def save_vision_model(directory: Path) -> Path:
    """A seeded random Qwen2-VL of 8 layers (H 64, heads of 16) with its processor; returns the directory."""
    tokenizer = vision_tokenizer()
    start, end, image, video = tokenizer.convert_tokens_to_ids([START, END, IMAGE, VIDEO])
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.2,
    }
    vision = {
        "depth": 2,
        "embed_dim": 32,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "hidden_size": 64,
        "initializer_range": 0.2,
    }
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen2VLForConditionalGeneration(config).save_pretrained(directory)
    side = (PATCH * MERGE) ** 2
    images = Qwen2VLImageProcessorPil(min_pixels=side, max_pixels=MOST_TOKENS * side)
    processor = without_videos(Qwen2VLProcessor)(images, tokenizer, chat_template=tokenizer.chat_template)
    processor.save_pretrained(directory)
    return directory


def load_vision_model(directory: Path, downloads: Path) -> tuple[Target, PromptEncoder]:
    """The target through its backbone, and what encodes prompts for it."""
    backbone, section = QwenVLBackbone(QwenVLConfig()), TargetSection(path=str(directory))
    target = backbone.load(section, "cpu")
    return target, PromptEncoder(target, media=MediaReader(backbone.media(section), ImageReader(downloads)))


def write_conversations(directory: Path, count: int) -> Path:
    """JSONL of questions about images of several sizes, some of two images and some of none, with their answers."""
    rng, records = random.Random(3), []
    texts = iter(sentences(4 * count, seed=4))
    for index in range(count):
        name = f"{index}.png"
        picture(rng.randrange(30, 120), rng.randrange(30, 120), seed=index).save(directory / name)
        images = [name, "0.png"][: index % 3]
        question = [*map(image_part, images), text_part(" ".join(next(texts) for _ in range(3)))]
        records.append(asking(question, next(texts), id=f"c{index}"))
    return write_lines(directory / "conversations.jsonl", *records)
