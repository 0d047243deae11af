"""The contract of an exporter, kept by the core's own."""

from __future__ import annotations

from specdec_core.testing import ExporterContract


class TestHF(ExporterContract):
    name = "hf"
