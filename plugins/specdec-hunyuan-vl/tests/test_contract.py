"""The contract of a vision-language backbone, for both kinds of rotary positions that the family has."""

from __future__ import annotations

from pathlib import Path

from tiny_hunyuan_vl import FOUR_AXES, THREE_AXES, save

from specdec_core.testing import VisionBackboneContract


class TestFourAxesAndTiedHead(VisionBackboneContract):
    name = "hunyuan-vl"

    def make_target(self, directory: Path) -> None:
        save(directory, FOUR_AXES)


class TestThreeAxes(VisionBackboneContract):
    name = "hunyuan-vl"

    def make_target(self, directory: Path) -> None:
        save(directory, THREE_AXES, tie_word_embeddings=False, attention_bias=True)
