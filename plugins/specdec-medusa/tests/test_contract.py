"""The contract of an algorithm, for option sets that compute something of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from specdec_core.testing import AlgorithmContract

Options = Mapping[str, Any]


class MedusaContract(AlgorithmContract):
    name = "medusa"
    same_step: ClassVar[Sequence[Options]] = ({"implementation": "plain"},)


class TestDefault(MedusaContract):
    pass


class TestDraftVocabulary(MedusaContract):
    options: ClassVar[Options] = {"loss": "target", "layers": 2, "heads": 3}
    vocab_size = 90


class TestPaper(MedusaContract):
    options: ClassVar[Options] = {"preset": "medusa-1"}
    vocab_size = 120


class TestTargetLearns(MedusaContract):
    options: ClassVar[Options] = {"preset": "medusa-2"}


class TestTree(MedusaContract):
    options: ClassVar[Options] = {"tree": 12, "heads": 3}
    vocab_size = 90


class TestOwnTree(MedusaContract):
    options: ClassVar[Options] = {"tree": [[0], [1], [2], [0, 0], [0, 1], [1, 0], [0, 0, 0]], "heads": 3}
