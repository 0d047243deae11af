"""The contract of an algorithm; the tests of training are skipped."""

from __future__ import annotations

from typing import Any, ClassVar

from specdec_core.testing import AlgorithmContract


class TestDefault(AlgorithmContract):
    name = "ngram"


class TestLongEndings(AlgorithmContract):
    name = "ngram"
    options: ClassVar[Any] = {"longest": 4, "shortest": 2}
