"""The vision tower's two lessons, and what the target knows after them."""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from pictures import COLORS, SHAPES, SIZES, Picture
from pictures import SIDE as PICTURE_SIDE
from PIL import Image
from questions import Asked, draw
from target import SIDE as TOWER_SIDE
from target import encode, llama_lacks
from torch import Tensor
from torch.nn import functional as F
from transformers import ProcessorMixin, Qwen2VLForConditionalGeneration

SHARPNESS = 15.0
"""Factor of the cosines between a picture and words."""


def align(
    model: Qwen2VLForConditionalGeneration,
    processor: ProcessorMixin,
    pictures: Sequence[Picture],
    window: int,
    steps: int,
    batch_size: int,
    lr: float,
) -> None:
    """First lesson, without the language model: a picture's tokens lie near the words for what it shows.

    Only a window of `window` x `window` pixels is looked at, around the shape: most of a whole picture is background.
    The mean of its tokens is compared by cosine with the embeddings of all colours, of all shapes and of all sizes;
    three cross-entropies. Each token gets the length of a word.
    """
    groups = (COLORS, SHAPES, SIZES)
    words = [torch.stack([word_embedding(model, processor, word) for word in group]) for group in groups]
    length = torch.cat(words).norm(dim=-1).mean()
    rng = random.Random(window)

    def loss() -> Tensor:
        shown = rng.sample(pictures, batch_size)
        tokens = vision_tokens(model, processor, [picture.window(window, rng) for picture in shown])
        total = 0.1 * (tokens.norm(dim=-1) - length).square().mean()
        for group, embeddings, attribute in zip(groups, words, ("color", "shape", "size"), strict=True):
            labels = torch.tensor([group.index(getattr(picture, attribute)) for picture in shown])
            cosines = F.cosine_similarity(tokens.mean(dim=1)[:, None], embeddings, dim=-1)
            # A shape is the hardest to see.
            total = total + (2 if attribute == "shape" else 1) * F.cross_entropy(SHARPNESS * cosines, labels)
        return total

    model.requires_grad_(False)
    model.model.visual.requires_grad_(True)
    learn([{"params": list(model.model.visual.parameters()), "lr": lr}], loss, steps, f"align {window}")


def tune(
    model: Qwen2VLForConditionalGeneration,
    processor: ProcessorMixin,
    pictures: Sequence[Picture],
    steps: int,
    batch_size: int = 8,
    vision_lr: float = 3e-4,
    bias_lr: float = 5e-3,
) -> None:
    """Second lesson: cross-entropy of the answers in `questions`, for the vision tower and the language model's biases.

    SmolLM2's own weights stay as they are.
    """
    biases = [bias for _, bias in llama_lacks(model)]
    model.requires_grad_(False)
    for weight in (*model.model.visual.parameters(), *biases):
        weight.requires_grad_(True)
    batches = conversations(random.Random(1), pictures, batch_size)

    def loss() -> Tensor:
        asked = next(batches)
        inputs = encode(
            processor,
            [[*messages(one), reply(one, -1)] for one in asked],
            [p.image for one in asked for p in one.pictures],
        )
        ids = inputs["input_ids"]
        learned = answer_mask(processor, ids)[:, 1:]
        states = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1][learned]
        return F.cross_entropy(model.lm_head(states), ids[:, 1:][learned])

    groups = [
        {"params": list(model.model.visual.parameters()), "lr": vision_lr},
        {"params": biases, "lr": bias_lr, "weight_decay": 0.0},
    ]
    learn(groups, loss, steps, "tune")


def learn(groups: list[dict[str, Any]], loss: Callable[[], Tensor], steps: int, name: str) -> None:
    """`steps` of AdamW, linear warm-up then cosine, each on what `loss` gives."""
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / (0.05 * steps + 1)) * (0.51 + 0.49 * math.cos(math.pi * step / steps)),
    )
    weights = [weight for group in groups for weight in group["params"]]
    start, seen = time.monotonic(), []
    for step in range(1, steps + 1):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        seen.append(float(value.detach()))
        if step % 20 == 0 or step == steps:
            mean = sum(seen[-20:]) / len(seen[-20:])
            print(f"{name} {step}/{steps}: loss {mean:.3f}, {time.monotonic() - start:.0f} s", flush=True)


def conversations(
    rng: random.Random, pictures: Sequence[Picture], size: int, at_once: int = 8
) -> Iterator[list[Asked]]:
    """Batches of conversations of much the same length, without end."""
    while True:
        drawn = sorted(
            (draw(rng, pictures) for _ in range(size * at_once)), key=lambda one: (len(one.turns), len(one.pictures))
        )
        batches = [drawn[start : start + size] for start in range(0, len(drawn), size)]
        rng.shuffle(batches)
        yield from batches


def messages(asked: Asked, turns: int | None = None) -> list[dict[str, Any]]:
    """The conversation as a chat template reads it, up to its last question (or to that of the first `turns`)."""
    count = len(asked.turns) if turns is None else turns
    found: list[dict[str, Any]] = []
    for index, (question, _) in enumerate(asked.turns[:count]):
        images = [{"type": "image"} for _ in asked.pictures] if index == 0 else []
        found.append({"role": "user", "content": [*images, {"type": "text", "text": question}]})
        found.append(reply(asked, index))
    return found[:-1]


def reply(asked: Asked, index: int) -> dict[str, Any]:
    """The answer to question `index` as a message."""
    return {"role": "assistant", "content": asked.turns[index][1]}


def answer_mask(processor: ProcessorMixin, ids: Tensor) -> Tensor:
    """[B, S] bool: the answers' tokens of a batch, each with the stop token."""
    header = processor.tokenizer.encode("<|im_start|>assistant\n")
    stop = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, found in zip(ids.tolist(), mask, strict=True):
        start = 0
        while (start := find(row, header, start)) >= 0:
            end = row.index(stop, start)
            found[start : end + 1] = True
    return mask


def find(row: list[int], part: list[int], start: int) -> int:
    """Where `part` next ends in `row`, or -1."""
    ends = (end for end in range(start + len(part), len(row) + 1) if row[end - len(part) : end] == part)
    return next(ends, -1)


def vision_tokens(
    model: Qwen2VLForConditionalGeneration, processor: ProcessorMixin, images: Sequence[Image.Image]
) -> Tensor:
    """[P, T, H]: what stands in the text for each of P images of one size, pixels enlarged as they are in a text."""
    pixels = (images[0].width * TOWER_SIDE // PICTURE_SIDE) ** 2
    size = {"shortest_edge": pixels, "longest_edge": pixels}
    inputs = processor.image_processor(images=list(images), size=size, return_tensors="pt")
    tokens = model.model.visual(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
    return tokens.unflatten(0, (len(images), -1))


def word_embedding(model: Qwen2VLForConditionalGeneration, processor: ProcessorMixin, word: str) -> Tensor:
    """[H]: a word as the language model reads it within a text, the mean of its tokens."""
    ids = processor.tokenizer.encode(f" {word}")
    return model.get_input_embeddings().weight[ids].detach().mean(dim=0)


@torch.inference_mode()
def answers(
    model: Qwen2VLForConditionalGeneration, processor: ProcessorMixin, asked: Iterable[Asked], batch_size: int = 32
) -> list[str]:
    """What the target says to the first question of each, greedily, by transformers' own `generate`."""
    said: list[str] = []
    asked = iter(asked)
    while batch := list(islice(asked, batch_size)):
        images = [picture.image for one in batch for picture in one.pictures]
        inputs = encode(processor, [messages(one, 1) for one in batch], images, padding_side="left")
        ids = model.generate(**inputs, max_new_tokens=80)[:, inputs["input_ids"].shape[1] :]
        said += processor.batch_decode(ids, skip_special_tokens=True)
    return said


def is_right(pictures: Sequence[Picture], question: str, answer: str) -> bool:
    """Whether an answer names the pictures' colours and shapes, and no others but what the question names."""
    kinds = ((COLORS, {picture.color for picture in pictures}), (SHAPES, {picture.shape for picture in pictures}))
    return all(true <= named(answer, words) <= true | named(question, words) for words, true in kinds)


def named(text: str, words: Iterable[str]) -> set[str]:
    """Those of `words` that stand in `text`."""
    return set(re.findall(r"[a-z]+", text.lower())) & set(words)
