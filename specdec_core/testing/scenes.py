"""Texts with images for a vision-language backbone, and the model's own values to compare with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from specdec_core.data.batch import PADDING_DOCUMENT, Batch, concatenated
from specdec_core.data.media import LoadedMedium, MediaProcessor, MediumKind
from specdec_core.testing.family import Family, Values
from specdec_core.testing.tokenizer import sentences

Part = str | LoadedMedium
Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Scene:
    """A conversation with media, as text and as what the target reads. n tokens.

    text       rendered by the chat template, a marker for each medium
    media      in the text's order
    ids        [n]
    inputs     the model's further inputs
    places     the half-open span of slots of each medium
    """

    text: str
    media: tuple[LoadedMedium, ...]
    ids: tuple[int, ...]
    inputs: Inputs
    places: tuple[tuple[int, int], ...]

    def of_kind(self, kind: MediumKind) -> list[LoadedMedium]:
        """Its images, or its videos, in the text's order."""
        return [medium for medium in self.media if medium.kind == kind]


Rows = Sequence[Sequence[Scene | Sequence[int]]]


@dataclass(frozen=True)
class VisionFamily(Family):
    """A vision-language backbone on the bench. Scenes that it made are known by their ids, also at a text's beginning.

    own_ids        what the family's own processor makes of a scene: ids [n] and the model's further inputs
    own_positions  the positions at which the model itself places the tokens of a text, [A, n]
    values         what the model itself computes for a text
    """

    media: MediaProcessor
    own_ids: Callable[[Scene], tuple[Tensor, Inputs]]
    own_positions: Callable[[Sequence[int], Inputs], Tensor]
    values: Callable[[Sequence[int], Inputs], Values]
    known: list[Scene] = field(default_factory=list)

    def ids(self, count: int, seed: int) -> list[int]:
        """Random tokens, none of them special: a placeholder asks for an image."""
        special = {*self.target.tokenizer.all_special_ids}
        return [id for id in super().ids(3 * count, seed) if id not in special][:count]

    def scene(self, parts: Sequence[Part], answer: str = "") -> Scene:
        """A turn of text and media, and its answer; without one the text ends where the target is to answer."""
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": part.kind, part.kind: "here"}
            for part in parts
        ]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        messages += [{"role": "assistant", "content": [{"type": "text", "text": answer}]}] if answer else []
        tokenizer = self.target.tokenizer
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=not answer))
        media = tuple(part for part in parts if not isinstance(part, str))
        processed = self.media.process(media)
        whole, spans = self._replaced(text, processed.replacements)
        encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        starts = [start for start, _ in encoded["offset_mapping"]]
        places = tuple((_first(starts, span[0]), _first(starts, span[1])) for span in spans)
        scene = Scene(text, media, tuple(encoded["input_ids"]), processed.inputs, places)
        self.known.append(scene)
        return scene

    def inputs(self, ids: Sequence[int]) -> Inputs:
        """The further inputs of a text: those of the last scene made that it is, or begins with."""
        for scene in reversed(self.known):
            if tuple(ids[: len(scene.ids)]) == scene.ids:
                return scene.inputs
        return {}

    def extras(self, prompts: Sequence[Sequence[int]]) -> list[Inputs]:
        """Each prompt's further model inputs."""
        return [self.inputs(prompt) for prompt in prompts]

    def rows(self, rows: Rows) -> Batch:
        """Packed and padded rows of scenes and texts; what stands in the padding is a placeholder, if there is one."""
        media = [document for row in rows for document in row if isinstance(document, Scene) and document.places]
        padding = media[0].ids[media[0].places[0][0]] if media else 0
        texts = [[_text(document, self.inputs) for document in row] for row in rows]
        slots = max(sum(len(ids) for ids, _ in row) for row in texts)
        ids, positions, documents = [], [], []
        for row in texts:
            parts = [torch.tensor(ids) for ids, _ in row]
            placed = [self.media.positions(part, own) for part, (_, own) in zip(parts, row, strict=True)]
            missing = (0, slots - sum(map(len, parts)))
            ids.append(F.pad(torch.cat(parts), missing, value=padding))
            positions.append(F.pad(torch.cat(placed, dim=-1), missing))
            numbers = torch.arange(len(parts)).repeat_interleave(torch.tensor([*map(len, parts)]))
            documents.append(F.pad(numbers, missing, value=PADDING_DOCUMENT))
        document_ids = torch.stack(documents)
        return Batch(
            torch.stack(ids),
            torch.stack(positions, dim=-2),
            document_ids != PADDING_DOCUMENT,
            document_ids,
            extras=concatenated(own for row in texts for _, own in row),
        )

    def _replaced(self, text: str, replacements: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
        """The text with its markers replaced, and where the replacements stand."""
        pieces: list[str] = []
        spans = []
        for piece, replacement in zip(
            re.split("|".join(map(re.escape, self.media.markers.values())), text), [*replacements, ""], strict=True
        ):
            pieces += [piece, replacement]
            end = sum(map(len, pieces))
            spans.append((end - len(replacement), end))
        return "".join(pieces), spans[:-1]


def pictures(sizes: Sequence[tuple[int, int]], seed: int) -> Iterator[LoadedMedium]:
    """Images of noise, each of a (height, width)."""
    from PIL import Image

    noise = np.random.default_rng(seed)
    for height, width in sizes:
        yield LoadedMedium("image", (Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8)),))


def moving(size: tuple[int, int], count: int, seed: int, fps: float | None = None) -> LoadedMedium:
    """A video of `count` frames of noise."""
    frames = [medium.frames[0] for medium in pictures([size] * count, seed)]
    return LoadedMedium("video", tuple(frames), fps)


def words(seed: int) -> str:
    """A sentence."""
    return sentences(1, seed)[0]


def _text(document: Scene | Sequence[int], inputs: Callable[[Sequence[int]], Inputs]) -> tuple[Sequence[int], Inputs]:
    return (document.ids, document.inputs) if isinstance(document, Scene) else (document, inputs(document))


def _first(starts: Sequence[int], at: int) -> int:
    """The first slot that begins at the character `at` or after it."""
    return next((slot for slot, start in enumerate(starts) if start >= at), len(starts))
