"""The draft's HF-style config: derived from the target, or read from a JSON file and checked against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specdec_core.algorithm.draft_json import (
    algorithm_problems,
    draft_vocab_size,
    read_draft_json,
    target_problems,
    vocab_problems,
)
from specdec_core.config.run import DraftSection
from specdec_core.errors import UserError, UserErrors
from specdec_core.nn.rotary import AXES_KEYS
from specdec_core.target.base import TargetFacts
from specdec_eagle3.config import Eagle3Config
from specdec_eagle3.draft_json import DraftJson, check_heads

ARCHITECTURE = "LlamaForCausalLMEagle3"

# What a draft JSON must say besides; everything else has a default in the field.
_REQUIRED = ("intermediate_size", "num_attention_heads")
# What the model is, whatever a draft JSON says.
_FIXED = {"hidden_act": "silu", "tie_word_embeddings": False}


def default_layers(facts: TargetFacts) -> tuple[int, ...]:
    """EAGLE-3's three captured layers, as inputs of layer k: 2, L // 2, L - 3.

    Raises UserError where these collide or leave the target (L < 8).
    """
    if facts.num_layers < 8:
        raise UserError(
            f"algorithm.layers: the target has {facts.num_layers} layers, too few for the default 2, L//2, L-3; "
            "name the captured layers yourself, e.g. algorithm.layers=[1, 2, 3]"
        )
    return (2, facts.num_layers // 2, facts.num_layers - 3)


def captured_layers(options: Eagle3Config, facts: TargetFacts) -> tuple[int, ...]:
    """The captured layer ids in ascending order. Raises UserError if the target has no such layer."""
    if options.layers is None:
        return default_layers(facts)
    layers = tuple(sorted(set(options.layers)))
    if not layers or len(layers) != len(options.layers) or layers[0] < 0 or layers[-1] > facts.num_layers:
        raise UserError(
            f"algorithm.layers is {list(options.layers)}; it takes distinct layer ids from 0 to {facts.num_layers}"
        )
    return layers


def derive(options: Eagle3Config, facts: TargetFacts, draft: DraftSection) -> dict[str, Any]:
    """The config of a draft whose decoder layer has the target's shape."""
    rope = {
        key: value
        for key, value in facts.rope_parameters.items()
        if options.positions == "target" or key not in AXES_KEYS
    }
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "llama",
        "hidden_size": facts.hidden_size,
        "intermediate_size": facts.intermediate_size,
        "num_attention_heads": facts.num_attention_heads,
        "num_key_value_heads": facts.num_key_value_heads,
        "head_dim": facts.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": facts.rms_norm_eps,
        "max_position_embeddings": facts.max_position_embeddings,
        "rope_parameters": rope,
        "rope_theta": rope.get("rope_theta", 10000.0),
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": facts.vocab_size,
        "draft_vocab_size": draft_vocab_size(facts, draft),
        "bos_token_id": facts.bos_token_id,
        "eos_token_id": facts.stop_token_ids[0] if facts.stop_token_ids else None,
        "tie_word_embeddings": False,
        **_eagle_keys(options, facts),
    }


def _eagle_keys(options: Eagle3Config, facts: TargetFacts) -> dict[str, Any]:
    layers = captured_layers(options, facts)
    return {
        "num_hidden_layers": options.num_layers,
        "norm_before_residual": options.norm_before_residual,
        "fc_norm": options.fc_norm,
        "norm_output": options.norm_output,
        "num_aux_hidden_states": len(layers),
        # The top-level ids name the input of layer k; the nested ones, of another engine, the output.
        "eagle_aux_hidden_state_layer_ids": list(layers),
        "eagle_config": {
            "use_aux_hidden_state": True,
            "eagle_aux_hidden_state_layer_ids": [layer - 1 for layer in layers],
        },
    }


def read(path: Path, options: Eagle3Config, facts: TargetFacts, draft: DraftSection) -> dict[str, Any]:
    """A draft JSON, checked against the target and the run config; every disagreement is reported at once."""
    loaded = read_draft_json(path, DraftJson)
    problems = target_problems(path, loaded, facts)
    problems += [f"draft.config: {path} lacks {key!r}" for key in _REQUIRED if key not in loaded]
    for key, value in _FIXED.items():
        if loaded.get(key, value) != value:
            problems.append(f"draft.config: {path} has {key} {loaded[key]}, the draft takes {value} alone; set that")
    derived = derive(options, facts, draft)
    own = ("num_hidden_layers", "norm_before_residual", "fc_norm", "norm_output")
    problems += algorithm_problems(path, loaded, {key: derived[key] for key in own})
    named = loaded.get("eagle_aux_hidden_state_layer_ids")
    if named is not None and sorted(named) != derived["eagle_aux_hidden_state_layer_ids"]:
        problems.append(
            f"draft.config: {path} captures layers {named}, the run {derived['eagle_aux_hidden_state_layer_ids']}; "
            f"set algorithm.layers={named}"
        )
    problems += vocab_problems(path, loaded, facts, draft)
    rope = _rope(loaded, derived)
    problems += _axes_problems(path, rope, derived, options)
    if problems:
        raise UserErrors(problems)
    captured = ("num_aux_hidden_states", "eagle_aux_hidden_state_layer_ids", "eagle_config")
    merged = {**derived, **loaded, **{key: derived[key] for key in captured}}
    if "head_dim" not in loaded:
        merged["head_dim"] = merged["hidden_size"] // merged["num_attention_heads"]
    if "num_key_value_heads" not in loaded:
        merged["num_key_value_heads"] = merged["num_attention_heads"]
    check_heads(path, merged)
    return {**merged, "rope_parameters": rope, "rope_theta": rope["rope_theta"]}


def _rope(loaded: dict[str, Any], derived: dict[str, Any]) -> dict[str, Any]:
    """`rope_parameters` of the JSON, in Hugging Face's new form or the one before it (`rope_theta` and
    `rope_scaling`), else the target's. The axes of positions are the target's where the JSON names none."""
    own, theta = derived["rope_parameters"], loaded.get("rope_theta", derived["rope_theta"])
    if "rope_parameters" in loaded:
        rope = dict(loaded["rope_parameters"])
    elif "rope_theta" in loaded or loaded.get("rope_scaling"):
        rope = dict(loaded.get("rope_scaling") or {})
    else:
        return {"rope_theta": theta, **own}
    kind = rope.pop("type", "default")
    if rope.get("rope_type", kind) == "mrope":  # what configs of the older form say beside the axes
        kind = rope["rope_type"] = "default"
    axes = {} if "mrope_section" in rope else {key: own[key] for key in AXES_KEYS if key in own}
    return {"rope_type": kind, "rope_theta": theta, **rope, **axes}


def _axes_problems(path: Path, rope: dict[str, Any], derived: dict[str, Any], options: Eagle3Config) -> list[str]:
    """How the axes of positions in a draft JSON disagree with the run config or with the target's."""
    named, targets = rope.get("mrope_section"), derived["rope_parameters"].get("mrope_section")
    if named is None:
        return []
    if options.positions != "target":
        return [
            f'draft.config: {path} has mrope_section {named}, and algorithm.positions = "{options.positions}" reads '
            "one axis of positions; leave one of them out"
        ]
    if targets is not None and isinstance(named, list) and len(named) != len(targets):
        return [f"draft.config: {path} has mrope_section {named}, the target {targets}; they need as many axes"]
    return []
