"""Mistakes that the contract must catch in a copy of this plugin, and of the core's part of it.

Name, promise, contract class, edits; see tests/test_planted_bugs.py.
"""

from __future__ import annotations

from planting import bug

FOUR, THREE = "TestFourAxesAndTiedHead", "TestThreeAxes"
BACKBONE = "specdec_hunyuan_vl/backbone.py"
VISION, MEDIA, SESSION = (f"specdec_core/target/{name}.py" for name in ("hf_vision", "hf_media", "session"))

BUGS = [
    bug("sections over half the dimensions", "facts", THREE,
        BACKBONE, '{**rope, "mrope_layout": "doubled"}', "{**rope}"),
    bug("base not stretched", "facts", FOUR,
        BACKBONE, 'found["rope_theta"] *= found["alpha"] ** (head_dim / (head_dim - 2))', "pass"),
    bug("base stretched by alpha itself", "facts", FOUR, BACKBONE, "** (head_dim / (head_dim - 2))", ""),
    bug("a bare placeholder given to the processor", "media", FOUR,
        BACKBONE, '        return f"{self.processor.image_start_token}{super().context(kind)}'
        '{self.processor.image_end_token}"\n', "        return super().context(kind)\n"),
    bug("start and end tokens replaced too", "media", THREE,
        MEDIA, 'place["replacement"] for place in replaced', '"<img>" + place["replacement"] for place in replaced'),
    bug("positions of the first axis on all", "images", FOUR,
        VISION, '"position_ids": batch.positions,', '"position_ids": batch.positions[:1].expand_as(batch.positions),'),
    bug("positions of another prompt's images", "generation", THREE,
        VISION, "zip(prompts, extras or [{}]", "zip(prompts, [*extras][::-1] or [{}]"),
    bug("a text goes on from the first position", "sessions", FOUR,
        SESSION, "batch.positions[..., -1].max()", "batch.positions[..., 0].max()"),
]  # fmt: skip
