"""The contract of an algorithm, for option sets that compute something of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from specdec_core.algorithm.draft import Draft
from specdec_core.capture.features import Features
from specdec_core.data.batch import Batch
from specdec_core.testing import AlgorithmContract
from specdec_core.testing.bench import recorded

Options = Mapping[str, Any]


class Eagle3Contract(AlgorithmContract):
    name = "eagle3"
    same_step: ClassVar[Sequence[Options]] = ({"implementation": "plain"}, {"recompute": True})

    def training_states(self, draft: Draft, batch: Batch, features: Features) -> Tensor | None:
        """Of the plain step, which computes logits at every slot of every step."""
        plain = self.load(implementation="plain")
        with recorded(draft) as states:
            plain.training_step(draft, batch, features, draft.target, torch.ones(plain.options.steps))
        return torch.cat(states)


class TestDefault(Eagle3Contract):
    pass


class TestDraftVocabulary(Eagle3Contract):
    options: ClassVar[Options] = {"filter_teacher": True, "objective": "kl", "regression": 0.5}
    vocab_size = 90


class TestTwoLayers(Eagle3Contract):
    options: ClassVar[Options] = {"num_layers": 2, "head": "frozen", "steps": 4, "norm_before_residual": True}


class TestNormedFeedback(Eagle3Contract):
    options: ClassVar[Options] = {"preset": "eagle3.1", "steps": 5, "reduction": "sequence"}
    vocab_size = 120


class TestLabelsAloneMasked(Eagle3Contract):
    options: ClassVar[Options] = {"mask": "speculators", "steps": 3}
    waived: ClassVar[Mapping[str, str]] = {
        "masked-tokens": 'mask = "speculators" also teaches what follows an answer, as its namesake does'
    }
