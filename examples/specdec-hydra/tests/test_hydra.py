"""What every algorithm promises."""

from specdec_core.testing import AlgorithmContract


class TestHydra(AlgorithmContract):
    name = "hydra"
