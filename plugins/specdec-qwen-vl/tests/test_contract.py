"""The contract of a vision-language backbone, for each family that it serves."""

from __future__ import annotations

from pathlib import Path

from tiny_qwen_vl import save

from specdec_core.testing import VisionBackboneContract


class TestQwen2VL(VisionBackboneContract):
    name = "qwen-vl"

    def make_target(self, directory: Path) -> None:
        save("qwen2_vl", directory)


class TestQwen25VL(VisionBackboneContract):
    name = "qwen-vl"

    def make_target(self, directory: Path) -> None:
        save("qwen2_5_vl", directory, tie_word_embeddings=True)


class TestQwen3VL(VisionBackboneContract):
    name = "qwen-vl"

    def make_target(self, directory: Path) -> None:
        save("qwen3_vl", directory)


class TestQwen3VLMoe(VisionBackboneContract):
    name = "qwen-vl"

    def make_target(self, directory: Path) -> None:
        save("qwen3_vl_moe", directory)
