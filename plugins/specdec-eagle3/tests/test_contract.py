"""The contract of an algorithm, for option sets that compute something of their own."""

from __future__ import annotations

from typing import Any, ClassVar

from specdec_core.testing import AlgorithmContract


class TestDefault(AlgorithmContract):
    name = "eagle3"
    same_step: ClassVar[Any] = ({"implementation": "plain"}, {"recompute": True})


class TestDraftVocabulary(AlgorithmContract):
    name = "eagle3"
    options: ClassVar[Any] = {"filter_teacher": True, "objective": "kl", "regression": 0.5}
    vocab_size = 90
    same_step: ClassVar[Any] = ({"implementation": "plain"},)


class TestTwoLayers(AlgorithmContract):
    name = "eagle3"
    options: ClassVar[Any] = {"num_layers": 2, "head": "frozen", "steps": 4, "norm_before_residual": True}
    same_step: ClassVar[Any] = ({"implementation": "plain"}, {"recompute": True})


class TestNormedFeedback(AlgorithmContract):
    name = "eagle3"
    options: ClassVar[Any] = {"preset": "eagle3.1", "steps": 5, "reduction": "sequence"}
    vocab_size = 120
