"""How much of a text stands word for word in the training text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Overlap:
    """Of `total` n-grams (counted as often as they occur) `shared` occur in the training text too."""

    n: int
    shared: int
    total: int

    @property
    def share(self) -> float:
        """From 0 to 1; 0 if the texts are too short to hold an n-gram."""
        return self.shared / self.total if self.total else 0.0


def overlap(texts: Iterable[str], training: Iterable[str], n: int = 8) -> Overlap:
    """Word n-gram overlap, case and punctuation aside. Only the n-grams of `texts` are held in memory."""
    grams = [gram for text in texts for gram in _ngrams(text, n)]
    wanted = set(grams)
    found = {gram for text in training for gram in _ngrams(text, n) if gram in wanted}
    return Overlap(n, sum(gram in found for gram in grams), len(grams))


def _ngrams(text: str, n: int) -> Iterator[tuple[str, ...]]:
    words = WORD.findall(text.lower())
    return zip(*(words[start:] for start in range(n)), strict=False)
