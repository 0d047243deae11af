"""Contracts of plugins, as tests to inherit. Needs pytest: `pip install "specdec-core[testing]"`.

    from specdec_core.testing import AlgorithmContract

    class TestMine(AlgorithmContract):
        name = "my-algo"

The promises, and how each is tested: docs/contracts.md.
"""

from specdec_core.testing.algorithm import AlgorithmContract

__all__ = ["AlgorithmContract"]
