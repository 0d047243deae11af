"""A tiny tokenizer that knows of images, transformers' own image processor, and images made on the spot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from specdec_core.data.media import LoadedMedium, MediaProcessor, MediumKind, ProcessedMedia
from specdec_core.testing.tokenizer import tiny_tokenizer

START, END, IMAGE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
STOP = 2
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    f"{{% if part.type == 'image' %}}{START}{IMAGE}{END}{{% elif part.type == 'video' %}}{START}{VIDEO}{END}"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATCH, MERGE = 14, 2


def vision_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer(400)
    tokenizer.add_special_tokens({"additional_special_tokens": [START, END, IMAGE, VIDEO]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


class PatchProcessor(MediaProcessor):
    """Patches of 14 pixels, four of them a token; three axes of positions as the Qwen2-VL paper (section 2.1) has them.

    `most` is the most tokens of an image.
    """

    markers: ClassVar[dict[MediumKind, str]] = {"image": IMAGE, "video": VIDEO}

    def __init__(self, tokenizer: PreTrainedTokenizerFast, most: int = 16) -> None:
        side = (PATCH * MERGE) ** 2
        self.most = most
        self.images = Qwen2VLImageProcessorPil(min_pixels=side, max_pixels=most * side)
        self.pads = {kind: tokenizer.convert_tokens_to_ids(marker) for kind, marker in self.markers.items()}

    @property
    def fingerprint(self) -> str:
        return f"patches of {PATCH}, at most {self.most} tokens"

    def process(self, media: Sequence[LoadedMedium]) -> ProcessedMedia:
        found: dict[str, list[Tensor]] = {}
        replacements = []
        for medium in media:
            made = self.images(images=[list(medium.frames)], return_tensors="pt")
            pixels = "pixel_values" if medium.kind == "image" else "pixel_values_videos"
            found.setdefault(pixels, []).append(made["pixel_values"])
            found.setdefault(f"{medium.kind}_grid_thw", []).append(made["image_grid_thw"])
            tokens = int(made["image_grid_thw"].prod(dim=1).sum()) // MERGE**2
            replacements.append(self.markers[medium.kind] * tokens)
        return ProcessedMedia(tuple(replacements), {name: torch.cat(parts) for name, parts in found.items()})

    def positions(self, ids: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        grids = {pad: iter(inputs.get(f"{kind}_grid_thw", ())) for kind, pad in self.pads.items()}
        positions: list[Tensor] = []
        start = at = 0
        while at < len(ids):
            grid = next(grids[int(ids[at])]) if int(ids[at]) in grids else None
            t, h, w = (1, 1, 1) if grid is None else (int(grid[0]), int(grid[1]) // MERGE, int(grid[2]) // MERGE)
            axes = torch.meshgrid(torch.arange(t), torch.arange(h), torch.arange(w), indexing="ij")
            positions.append(start + torch.stack([axis.flatten() for axis in axes]))
            start += max(t, h, w)
            at += t * h * w
        return torch.cat(positions, dim=1)


def picture(width: int = 60, height: int = 40, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Noise."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, bands), dtype=np.uint8)
    return Image.fromarray(noise.squeeze(), mode if bands != 3 else "RGB")


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def image_part(source: str | Path) -> dict[str, Any]:
    return {"type": "image", "image": str(source)}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def asking(question: Any, answer: str = "the red apple", **keys: Any) -> dict[str, Any]:
    """A conversation of one question, a string or parts, and its answer."""
    return {"conversations": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **keys}


def write_lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
