"""The algorithm `ngram`: prompt lookup behind the core's contract."""

from __future__ import annotations

from specdec_core.algorithm.base import TrainingFreeAlgorithm
from specdec_core.target.base import Target
from specdec_ngram.config import NgramConfig
from specdec_ngram.drafter import LookupDrafter


class Ngram(TrainingFreeAlgorithm):
    """Made with a validated `NgramConfig`."""

    title = "n-gram lookup"
    options: NgramConfig

    def drafter(self, target: Target) -> LookupDrafter:
        """Chains, found on the CPU."""
        return LookupDrafter(self.options.longest, self.options.shortest)
