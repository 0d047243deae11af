"""The contract of a backbone."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar

import pytest

from specdec_core.config.run import TargetSection
from specdec_core.data.batch import Batch
from specdec_core.testing.batches import batch_of
from specdec_core.testing.capturing import CapturingContract
from specdec_core.testing.facts import FactsContract
from specdec_core.testing.family import Family, Values, own_model, own_values
from specdec_core.testing.sessions import SessionContract


class BackboneContract(FactsContract, CapturingContract, SessionContract):
    """Everything that a backbone promises, as tests for a subclass to inherit:

        class TestMine(BackboneContract):
            name = "my-family"

            def make_target(self, directory):
                save_random_model(MyConfig(...), directory)
                save_tokenizer(directory, vocab_size=512)

    `attention` is `target.attention`. Write one subclass for each kind of model that differs. See docs/contracts.md.
    """

    attention: ClassVar[str] = "sdpa"

    def make_target(self, directory: Path) -> None:
        """Save a tiny random model of the family, of three layers or more, with its tokenizer."""
        raise NotImplementedError(f"{type(self).__name__} says in make_target(directory) how a tiny model is made")

    def reference(self, directory: Path, ids: Sequence[int]) -> Values:
        """What the model itself computes for a document. Default: transformers' own model with eager attention."""
        return own_values(own_model(directory), ids)

    def batch(self, rows: Sequence[Sequence[Sequence[int]]]) -> Batch:
        """Packed and padded rows of documents of ids. Default: positions count from 0 in each document."""
        return batch_of(rows)

    @pytest.fixture
    def family(self, tmp_path_factory: pytest.TempPathFactory) -> Family:
        """The backbone with its tiny target, loaded once."""
        return self._family(tmp_path_factory.getbasetemp())

    @classmethod
    @cache
    def _family(cls, temporary: Path) -> Family:
        contract = cls()
        directory = Path(tempfile.mkdtemp(prefix=cls.__name__, dir=temporary))
        contract.make_target(directory)
        section = TargetSection(path=str(directory), attention=cls.attention)
        backbone = cls.load()
        reference = cache(lambda ids: contract.reference(directory, ids))
        return Family(
            backbone, section, backbone.load(section, "cpu"), lambda ids: reference(tuple(ids)), contract.batch
        )
