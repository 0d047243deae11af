"""What the contracts of an algorithm's parts share: the algorithm on the bench."""

from __future__ import annotations

from typing import ClassVar

import pytest

from specdec_core.algorithm.base import TrainedAlgorithm
from specdec_core.config.run import Dtype
from specdec_core.testing.bench import Bench, FreeBench, TrainedBench
from specdec_core.testing.plugin import PluginContract

with_and_without_images = pytest.mark.parametrize("images", [False, True], ids=["text", "images"])


class OnTheBench(PluginContract):
    """`vocab_size` is that of the draft, where the algorithm knows draft vocabularies; None for the target's."""

    kind = "algorithm"
    vocab_size: ClassVar[int | None] = None

    @classmethod
    def bench(cls, dtype: Dtype = "float32", images: bool = False) -> Bench:
        """The algorithm with the class's options, and a target of its own; see `Bench`."""
        algorithm = cls.load()
        if isinstance(algorithm, TrainedAlgorithm):
            return TrainedBench(algorithm, cls.vocab_size, dtype, images)
        return FreeBench(algorithm, dtype, images)

    @classmethod
    def trained(cls, dtype: Dtype = "float32", images: bool = False) -> TrainedBench:
        """The same for a test of training, which is skipped where there is none."""
        bench = cls.bench(dtype, images)
        if not isinstance(bench, TrainedBench):
            pytest.skip(f"algorithm {cls.name} needs no training")
        return bench
