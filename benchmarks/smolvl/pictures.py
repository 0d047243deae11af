"""The pictures of easy-vqa (MIT): one shape of one colour on a light background, 64 x 64."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image, ImageChops

COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
SIZES = ("small", "large")
SIDE = 64
LARGE = 24
"""Side in pixels from which a shape is called large; half of the pictures are."""


@dataclass(frozen=True)
class Picture:
    """A picture, what it shows, and what easy-vqa asks about it as (question, answer in one word)."""

    file: Path
    color: str
    shape: str
    asked: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """Its name among all of easy-vqa's."""
        return f"{self.file.parent.parent.name}-{self.file.stem}"

    @cached_property
    def image(self) -> Image.Image:
        return Image.open(self.file).convert("RGB")

    @cached_property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of all that is not background."""
        colors = [color for _, color in sorted(self.image.getcolors(self.image.width * self.image.height))]
        background = Image.new("RGB", self.image.size, colors[-1])
        return ImageChops.difference(self.image, background).getbbox()

    @cached_property
    def size(self) -> str:
        """By the longer side of the box."""
        left, top, right, bottom = self.box
        return SIZES[max(right - left, bottom - top) >= LARGE]

    def window(self, side: int, rng: random.Random) -> Image.Image:
        """A square part of the picture, as much of the shape in it as it holds."""
        (left, top, right, bottom), limit = self.box, SIDE - side

        def start(low: int, high: int) -> int:
            ends = sorted((max(0, min(limit, high - side)), max(0, min(limit, low))))
            return rng.randint(*ends)

        x, y = start(left, right), start(top, bottom)
        return self.image.crop((x, y, x + side, y + side))


def load(split: str) -> list[Picture]:
    """All pictures of easy-vqa's "train" (4,000) or "test" (1,000) whose colour and shape its answers name."""
    try:
        import easy_vqa
    except ImportError:
        raise SystemExit("easy-vqa is not installed: run `pip install --no-deps easy-vqa==1.0`") from None
    root = Path(easy_vqa.__file__).parent / "data" / split
    asked: dict[int, list[tuple[str, str]]] = {}
    for question, answer, image in json.loads((root / "questions.json").read_text(encoding="utf-8")):
        asked.setdefault(image, []).append((question, answer))
    pictures = []
    for image, pairs in sorted(asked.items()):
        true = {word for question, answer in pairs for word in true_words(question, answer)}
        colors, shapes = true & set(COLORS), true & set(SHAPES)
        if colors and shapes:
            pictures.append(Picture(root / "images" / f"{image}.png", colors.pop(), shapes.pop(), tuple(pairs)))
    return pictures


def true_words(question: str, answer: str) -> set[str]:
    """The colours and shapes that a question and its answer say are in the picture."""
    words = set(question.rstrip("?").split())
    if answer not in ("yes", "no"):
        return words | {answer}
    denied = bool(words & {"not", "no"})
    return words if (answer == "yes") != denied else set()
