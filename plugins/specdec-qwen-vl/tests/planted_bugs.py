"""Mistakes that the contract must catch in a copy of this plugin, and of the core's part of it.

Name, promise, contract class, edits; see tests/test_planted_bugs.py.
"""

from __future__ import annotations

from planting import bug

TWO, TWO_AND_A_HALF, THREE = "TestQwen2VL", "TestQwen25VL", "TestQwen3VL"
BACKBONE = "specdec_qwen_vl/backbone.py"
TARGET, VISION, MEDIA, SESSION, CAPTURING = (
    f"specdec_core/target/{name}.py" for name in ("hf", "hf_vision", "hf_media", "session", "capturing")
)

BUGS = [
    # Facts.
    bug("biases of the attention forgotten", "facts", TWO_AND_A_HALF,
        BACKBONE, 'BIASED_QKV = frozenset({"qwen2_vl", "qwen2_5_vl"})', 'BIASED_QKV = frozenset({"qwen2_vl"})'),
    bug("axes not interleaved", "facts", THREE,
        BACKBONE, "interleaved = config.model_type in INTERLEAVED", "interleaved = False"),
    bug("one axis only", "facts", TWO,
        BACKBONE, 'if key != "type"}', 'if key != "mrope_section"}'),
    # What becomes of images.
    bug("images in the wrong order", "media", TWO,
        MEDIA, "[medium.frames[0] for medium in media", "[medium.frames[0] for medium in media[::-1]"),
    bug("one image's text for all", "media", TWO,
        MEDIA, 'place["replacement"] for place in replaced', 'replaced[0]["replacement"] for place in replaced'),
    bug("a fingerprint of its own for each processor", "media", TWO,
        MEDIA, "            self.config.model_type,\n", "            id(self.processor),\n"),
    bug("a processor that cannot be sent", "media", TWO_AND_A_HALF,
        MEDIA, "        def __reduce__(self) -> Any:\n            return _restored, (kind, vars(self))\n", ""),
    bug("positions of text at images", "positions", TWO, MEDIA, "        if inputs:  #", "        if not inputs:  #"),
    # Captures.
    bug("placeholders in the padding left without an image", "images", THREE,
        VISION, "batch.ids.masked_fill(padding, self.model.generation_config.pad_token_id)", "batch.ids"),
    bug("positions of one axis", "images", TWO,
        VISION, '"position_ids": batch.positions,', '"position_ids": batch.positions[:1].expand_as(batch.positions),'),
    bug("embeddings of placeholders for those of images", "images", TWO,
        TARGET, "embeds=states[0] if plan.embeds", 'embeds=self.embed(inputs["input_ids"]) if plan.embeds'),
    bug("states without what is added between layers", "images", THREE,
        TARGET, "self.norm() if layer == count else layers[layer] for", "layers[max(layer - 1, 0)] for",
        CAPTURING, 'args[0] if args else kwargs["hidden_states"]', "output if key else args[0]",
        CAPTURING, "kwargs: dict[str, Any], key: int = key)", "kwargs: dict[str, Any], output: Any, key: int = key)",
        CAPTURING, "register_forward_pre_hook(hook", "register_forward_hook(hook"),
    # Decoding.
    bug("a text after an image at the number of its tokens", "sessions", TWO,
        SESSION, "self._ahead = int(batch.positions[..., -1].max()) + 1 - self._length", "self._ahead = 0"),
    bug("a tree after an image at the number of its tokens", "trees", THREE,
        TARGET, "positions = start + (torch", "positions = (start if depths is None else 7) + (torch"),
    bug("prompts padded on the wrong side", "generation", TWO,
        VISION, "(count - positions.shape[1], 0)", "(0, count - positions.shape[1])"),
    bug("images left out of generation", "generation", TWO,
        TARGET, "in concatenated(extras).items()}", "in concatenated([]).items()}"),
]  # fmt: skip
