"""What the tests of a target share: random tokens, and the plain model to compare with, document by document."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tiny_models import VOCAB, WINDOW
from torch import Tensor

from specdec_causal_lm.target import CausalLMTarget
from specdec_core.capture.features import Features
from specdec_core.testing import batches
from specdec_core.testing.family import assert_features, own_values

LONG = 3 * WINDOW
Load = Callable[..., CausalLMTarget]
Plain = Callable[[str], Any]


def random_ids(count: int, seed: int = 0) -> list[int]:
    return batches.random_ids(count, VOCAB, seed)


def reference(model: Any, document: list[int]) -> tuple[Features, Tensor]:
    """Every feature of one document, and its logits [n, V], from the plain model."""
    values = own_values(model, document)
    return values.features, values.logits


def assert_equal(found: Features, expected: Features, slots: slice, row: int) -> None:
    """Some slots of a row against one document."""
    assert_features(found.map(lambda x: x[row : row + 1, slots]), expected, f"row {row}")
