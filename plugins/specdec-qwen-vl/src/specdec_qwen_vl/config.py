"""The keys of `[backbone]` when `name = "qwen-vl"`."""

from __future__ import annotations

from specdec_core.target.hf_options import HFVisionOptions


class QwenVLConfig(HFVisionOptions):
    """Options of the `qwen-vl` backbone. All of them have sound defaults."""
