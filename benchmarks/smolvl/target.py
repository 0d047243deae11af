"""SmolLM2-135M-Instruct as the language model of a Qwen2-VL with a small vision tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

VISION_START, VISION_END, IMAGE, VIDEO = VISION_TOKENS = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SIDE = 112
"""Side in pixels that a 64 x 64 picture is scaled to: 8 x 8 patches, 4 x 4 tokens."""
MAX_PIXELS = 252 * 252

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' or part['type'] == 'image_url' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""SmolLM2's, without its own system message, with a marker where an image or a video stands."""


def vision_language_model(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, seed: int
) -> Qwen2VLForConditionalGeneration:
    """A Qwen2-VL that says in text what `llama` says. `tokenizer` gets the vision tokens and a template with images.

    Llama's decoder is Qwen2-VL's without biases of q, k and v, which are zero here. The vision tower is random.
    """
    tokenizer.add_special_tokens({"additional_special_tokens": list(VISION_TOKENS)})
    tokenizer.chat_template = TEMPLATE
    ids = dict(zip(VISION_TOKENS, tokenizer.convert_tokens_to_ids(list(VISION_TOKENS)), strict=True))
    old = llama.config
    width = old.hidden_size // old.num_attention_heads
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": old.hidden_size,
            "intermediate_size": old.intermediate_size,
            "num_hidden_layers": old.num_hidden_layers,
            "num_attention_heads": old.num_attention_heads,
            "num_key_value_heads": old.num_key_value_heads,
            "hidden_act": old.hidden_act,
            "max_position_embeddings": old.max_position_embeddings,
            "rms_norm_eps": old.rms_norm_eps,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": old.rope_parameters["rope_theta"],
                # Of the frequencies a quarter for time, the rest for height and width in equal parts, as Qwen2-VL has.
                "mrope_section": [width // 8, width * 3 // 16, width * 3 // 16],
            },
            "bos_token_id": old.bos_token_id,
            "eos_token_id": old.eos_token_id,
            "pad_token_id": old.pad_token_id,
        },
        vision_config={"depth": 4, "embed_dim": 192, "num_heads": 6, "hidden_size": old.hidden_size},
        vision_start_token_id=ids[VISION_START],
        vision_end_token_id=ids[VISION_END],
        image_token_id=ids[IMAGE],
        video_token_id=ids[VIDEO],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(config)
    weights = {
        name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name: weight
        for name, weight in llama.state_dict().items()
    }
    rows = weights["model.language_model.embed_tokens.weight"]
    # What the language never says: as unlikely as the mean token, and no more.
    rows = torch.cat([rows, rows.mean(dim=0, keepdim=True).expand(len(tokenizer) - rows.shape[0], -1)])
    weights |= {"model.language_model.embed_tokens.weight": rows, "lm_head.weight": rows}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    biases = {name for name, _ in model.named_parameters() if is_bias(name)}
    unknown = {name for name in missing if not name.startswith("model.visual.")} - biases
    assert not unknown and not unexpected, (unknown, unexpected)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in biases:
                parameter.zero_()
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=old.bos_token_id,
        eos_token_id=old.eos_token_id,
        pad_token_id=old.pad_token_id,
    )
    return model


def is_bias(name: str) -> bool:
    """Whether a parameter is one of the biases that Llama does not have."""
    return name.startswith("model.language_model.") and name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias"))


@dataclass(frozen=True)
class Reader:
    """Texts and images as the model's inputs, as the family's own processor makes them (which needs torchvision)."""

    tokenizer: PreTrainedTokenizerBase
    images: Qwen2VLImageProcessorPil

    @classmethod
    def new(cls, tokenizer: PreTrainedTokenizerBase) -> Reader:
        """With the sizes that this target reads images in."""
        return cls(tokenizer, Qwen2VLImageProcessorPil(min_pixels=SIDE * SIDE, max_pixels=MAX_PIXELS))

    def save(self, directory: Path) -> None:
        self.tokenizer.save_pretrained(directory)
        self.images.save_pretrained(directory)

    def expand(self, text: str, grids: Sequence[Tensor]) -> str:
        """`text` with each image's marker repeated, once for each of its tokens."""
        head, *rest = text.split(IMAGE)
        counts = [int(grid.prod()) // self.images.merge_size**2 for grid in grids]
        return head + "".join(IMAGE * count + part for count, part in zip(counts, rest, strict=True))

    def pixels(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """`pixel_values` and `image_grid_thw` of all images, one after the other."""
        return dict(self.images(images=list(images), return_tensors="pt"))

    def inputs(self, rows: Sequence[Sequence[int]], side: str, vision: dict[str, Tensor]) -> dict[str, Any]:
        """Rows of ids, padded on `side`, and their images, as the model's keyword arguments."""
        length = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        ids, mask = [], []
        for row in rows:
            gap = length - len(row)
            parts = ([pad] * gap, list(row)) if side == "left" else (list(row), [pad] * gap)
            ids.append(parts[0] + parts[1])
            mask.append([0] * gap + [1] * len(row) if side == "left" else [1] * len(row) + [0] * gap)
        input_ids = torch.tensor(ids)
        image = self.tokenizer.convert_tokens_to_ids(IMAGE)
        return {
            "input_ids": input_ids,
            "attention_mask": torch.tensor(mask),
            "mm_token_type_ids": (input_ids == image).int(),
            **vision,
        }
