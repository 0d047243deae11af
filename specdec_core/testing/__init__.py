"""Contracts of plugins, as tests to inherit. Needs pytest: `pip install "specdec-core[testing]"`.

    from specdec_core.testing import AlgorithmContract

    class TestMine(AlgorithmContract):
        name = "my-algo"

The promises, and how each is tested: docs/contracts.md.
"""

from specdec_core.testing.algorithm import AlgorithmContract
from specdec_core.testing.backbone import BackboneContract
from specdec_core.testing.exporter import ExporterContract
from specdec_core.testing.family import save_processor, save_random_model
from specdec_core.testing.tokenizer import save_tokenizer
from specdec_core.testing.vision import VisionBackboneContract

__all__ = [
    "AlgorithmContract",
    "BackboneContract",
    "ExporterContract",
    "VisionBackboneContract",
    "save_processor",
    "save_random_model",
    "save_tokenizer",
]
