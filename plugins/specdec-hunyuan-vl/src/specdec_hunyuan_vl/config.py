"""The keys of `[backbone]` when `name = "hunyuan-vl"`."""

from __future__ import annotations

from specdec_core.target.hf_options import HFVisionOptions


class HunyuanVLConfig(HFVisionOptions):
    """Options of the `hunyuan-vl` backbone. All of them have sound defaults."""
