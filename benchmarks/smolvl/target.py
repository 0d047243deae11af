"""SmolLM2-135M-Instruct as the language model of a Qwen2-VL with a small vision tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from specdec_core.target.hf_media import without_videos

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
VISION_TOWER = {"depth": 4, "embed_dim": 192, "num_heads": 6, "initializer_range": 192**-0.5}
"""Few wide layers' 0.02 would leave so narrow a tower almost linear at its start."""
SIDE = 112
"""Side in pixels that a 64 x 64 picture is scaled to: 8 x 8 patches, 4 x 4 tokens."""
MAX_PIXELS = 252 * 252

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""SmolLM2's, without its own system message, with a marker where an image or a video stands."""


def make_processor(tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin:
    """The family's processor. `tokenizer` gets the vision tokens and a chat template that has a place for images."""
    tokenizer.add_special_tokens({"additional_special_tokens": list(VISION_TOKENS)})
    images = Qwen2VLImageProcessorPil(min_pixels=SIDE * SIDE, max_pixels=MAX_PIXELS)
    return without_videos(Qwen2VLProcessor)(images, tokenizer, chat_template=TEMPLATE)


def make_model(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> Qwen2VLForConditionalGeneration:
    """A Qwen2-VL that says in text what `llama` says. `tokenizer` has the vision tokens; the vision tower is random.

    Llama's decoder is Qwen2-VL's without biases of q, k and v, which are zero here.
    """
    config = make_config(llama.config, tokenizer)
    model = Qwen2VLForConditionalGeneration(config)
    weights = {
        name.replace("model.", "model.language_model.", 1): weight for name, weight in llama.state_dict().items()
    }
    rows = llama.get_input_embeddings().weight
    # The mean row is never the likeliest: the language model does not say a vision token.
    further = rows.mean(dim=0, keepdim=True).expand(len(tokenizer) - rows.shape[0], -1)
    weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"] = torch.cat([rows, further])
    missing, unexpected = model.load_state_dict(weights, strict=False)
    biases = dict(llama_lacks(model))
    if unexpected or any(name not in biases and not name.startswith("model.visual.") for name in missing):
        raise SystemExit(f"transformers' Llama and Qwen2-VL no longer fit: {unexpected or missing}")
    for bias in biases.values():
        torch.nn.init.zeros_(bias)
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=llama.config.bos_token_id,
        eos_token_id=llama.config.eos_token_id,
        pad_token_id=llama.config.pad_token_id,
    )
    return model


def make_config(llama: Any, tokenizer: PreTrainedTokenizerBase) -> Qwen2VLConfig:
    """Llama's sizes under Qwen2-VL's names."""
    vision_start, vision_end, image, video = tokenizer.convert_tokens_to_ids(list(VISION_TOKENS))
    same = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "hidden_act",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    )
    width = llama.hidden_size // llama.num_attention_heads
    rope = {
        "rope_type": "default",
        "rope_theta": llama.rope_parameters["rope_theta"],
        # As Qwen2-VL divides them: a quarter of the frequencies for time, the rest half each for height and width.
        "mrope_section": [width // 8, width * 3 // 16, width * 3 // 16],
    }
    return Qwen2VLConfig(
        text_config={name: getattr(llama, name) for name in same}
        | {"vocab_size": len(tokenizer), "rope_parameters": rope},
        vision_config=VISION_TOWER | {"hidden_size": llama.hidden_size},
        vision_start_token_id=vision_start,
        vision_end_token_id=vision_end,
        image_token_id=image,
        video_token_id=video,
        tie_word_embeddings=llama.tie_word_embeddings,
    )


def llama_lacks(model: Qwen2VLForConditionalGeneration) -> list[tuple[str, Tensor]]:
    """The language model's biases, by name."""
    return [
        (name, weight)
        for name, weight in model.model.language_model.named_parameters("model.language_model")
        if name.endswith(".bias")
    ]


@torch.no_grad()
def difference(llama: LlamaForCausalLM, model: Qwen2VLForConditionalGeneration, ids: Tensor) -> float:
    """The largest difference of the two models' logits of a text [1, n]."""
    ours = model(input_ids=ids, use_cache=False).logits[..., : llama.config.vocab_size]
    return float((llama(input_ids=ids, use_cache=False).logits - ours).abs().max())


def encode(
    processor: ProcessorMixin,
    conversations: Sequence[Sequence[dict[str, Any]]],
    images: Sequence[Image.Image],
    **options: Any,
) -> dict[str, Tensor]:
    """Conversations, whose images come in their order, as the model's keyword arguments."""
    asks = conversations[0][-1]["role"] == "user"
    texts = processor.apply_chat_template(list(conversations), add_generation_prompt=asks, tokenize=False)
    return dict(processor(text=texts, images=list(images), padding=True, return_tensors="pt", **options))
