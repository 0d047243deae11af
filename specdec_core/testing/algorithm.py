"""The contract of an algorithm."""

from __future__ import annotations

from specdec_core.testing.drafting import DraftingContract
from specdec_core.testing.saving import SavingContract
from specdec_core.testing.supervision import SupervisionContract
from specdec_core.testing.training import TrainingContract


class AlgorithmContract(TrainingContract, SupervisionContract, DraftingContract, SavingContract):
    """Everything that an algorithm promises, as tests for a subclass to inherit:

        class TestMine(AlgorithmContract):
            name = "my-algo"
            options = {"heads": 3}

    Write one subclass for each set of options that computes something of its own. See docs/contracts.md.
    """
