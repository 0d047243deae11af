"""The exported draft: names, shapes and config keys that engines read, and the way back."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from eagle3_support import HIDDEN, VOCAB, facts, make, random_batch
from torch import Tensor
from transformers import LlamaConfig

from specdec_core.data.vocab import VocabMap
from specdec_core.errors import UserError, UserErrors
from specdec_eagle3.config import Eagle3Config

DRAFT_VOCAB, QUERIES, KEYS, INNER = 20, 32, 16, 48
SHAPES = {
    "fc.weight": [HIDDEN, 3 * HIDDEN],
    "midlayer.input_layernorm.weight": [HIDDEN],
    "midlayer.hidden_norm.weight": [HIDDEN],
    "midlayer.post_attention_layernorm.weight": [HIDDEN],
    "midlayer.self_attn.q_proj.weight": [QUERIES, 2 * HIDDEN],
    "midlayer.self_attn.k_proj.weight": [KEYS, 2 * HIDDEN],
    "midlayer.self_attn.v_proj.weight": [KEYS, 2 * HIDDEN],
    "midlayer.self_attn.o_proj.weight": [HIDDEN, QUERIES],
    "midlayer.mlp.gate_proj.weight": [INNER, HIDDEN],
    "midlayer.mlp.up_proj.weight": [INNER, HIDDEN],
    "midlayer.mlp.down_proj.weight": [HIDDEN, INNER],
    "norm.weight": [HIDDEN],
    "lm_head.weight": [DRAFT_VOCAB, HIDDEN],
    "d2t": [DRAFT_VOCAB],
    "t2d": [VOCAB],
}


def exported(options: Eagle3Config | None = None, vocab: int | None = DRAFT_VOCAB) -> dict[str, Tensor]:
    algorithm, draft, _ = make(options or Eagle3Config(), vocab)
    return dict(algorithm.export(draft, facts()).tensors)


def test_names_and_shapes_are_those_that_engines_read() -> None:
    assert {name: list(tensor.shape) for name, tensor in exported().items()} == SHAPES


def test_vocabulary_map_is_an_int64_offset_and_a_boolean_mask() -> None:
    algorithm, draft, _ = make(Eagle3Config(), DRAFT_VOCAB)
    tensors = algorithm.export(draft, facts()).tensors
    assert draft.draft_ids is not None
    assert tensors["d2t"].dtype == torch.int64
    assert tensors["t2d"].dtype == torch.bool
    ids = [i + int(offset) for i, offset in enumerate(tensors["d2t"])]
    assert ids == draft.draft_ids.tolist() == tensors["t2d"].nonzero().flatten().tolist()


def test_a_draft_of_the_whole_vocabulary_has_no_vocabulary_map() -> None:
    tensors = exported(vocab=None)
    assert tensors.keys() == SHAPES.keys() - {"d2t", "t2d"}
    assert tensors["lm_head.weight"].shape == (VOCAB, HIDDEN)


def test_a_frozen_head_is_exported_too() -> None:
    assert exported(Eagle3Config(head="frozen")).keys() == SHAPES.keys()


def test_second_layer_and_state_norms_keep_their_own_names() -> None:
    names = exported(Eagle3Config(num_layers=2, fc_norm=True)).keys()
    assert {f"fc_norm.{i}.weight" for i in range(3)} < names
    assert {f"layers.{i}.self_attn.o_proj.weight" for i in range(2)} < names
    assert "layers.1.hidden_norm.weight" not in names
    assert not any(name.startswith("midlayer.") for name in names)


@pytest.mark.parametrize(
    "options", [Eagle3Config(), Eagle3Config(num_layers=2, fc_norm=True), Eagle3Config(head="frozen")]
)
@pytest.mark.parametrize("vocab", [None, DRAFT_VOCAB])
def test_a_draft_reads_back_exactly(options: Eagle3Config, vocab: int | None) -> None:
    algorithm, draft, target = make(options, vocab)
    found = algorithm.export(draft, facts())
    ids = None if vocab is None else VocabMap(found.tensors["t2d"].nonzero().squeeze(1), VOCAB)
    torch.manual_seed(5)
    other = algorithm.build_draft(json.loads(json.dumps(found.config)), target, ids)
    algorithm.load_exported(other, found.tensors)
    batch, features = random_batch(4, rows=2, length=30)
    ones = torch.ones(options.steps)
    losses = [algorithm.training_step(d, batch, features, target, ones).loss.item() for d in (draft, other)]
    assert losses[0] == losses[1] != 0
    for (name, ours), theirs in zip(draft.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_layer_names_of_the_other_engine_are_read_too() -> None:
    algorithm, draft, _ = make(Eagle3Config(), DRAFT_VOCAB, seed=0)
    _, other, _ = make(Eagle3Config(), DRAFT_VOCAB, seed=9)
    tensors = {name.replace("midlayer.", "layers.0."): tensor for name, tensor in exported().items()}
    algorithm.load_exported(other, {**tensors, "embed_tokens.weight": torch.zeros(VOCAB, HIDDEN)})
    assert all(torch.equal(a, b) for a, b in zip(draft.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", sorted(SHAPES.keys() - {"d2t", "t2d"}))
def test_a_missing_tensor_is_named(name: str) -> None:
    algorithm, draft, _ = make(Eagle3Config(), DRAFT_VOCAB)
    tensors = exported()
    del tensors[name]
    with pytest.raises(UserError, match=f"^draft tensor {name} is missing$"):
        algorithm.load_exported(draft, tensors)


@pytest.mark.parametrize("name", ["midlayer.self_attn.q_norm.weight", "layers.1.mlp.up_proj.weight", "head.weight"])
def test_an_unexpected_tensor_is_named(name: str) -> None:
    algorithm, draft, _ = make(Eagle3Config(), DRAFT_VOCAB)
    with pytest.raises(UserError, match=f"^draft tensor {name} is not one of this draft's$"):
        algorithm.load_exported(draft, {**exported(), name: torch.zeros(1)})


def test_a_misshapen_tensor_is_named_with_both_shapes() -> None:
    algorithm, draft, _ = make(Eagle3Config(), DRAFT_VOCAB)
    tensors = {**exported(), "lm_head.weight": torch.zeros(21, HIDDEN)}
    with pytest.raises(UserError, match=r"^draft tensor lm_head.weight has shape \[21, 32\], expected \[20, 32\]$"):
        algorithm.load_exported(draft, tensors)


def test_all_problems_come_at_once_and_leave_the_draft_as_it_was() -> None:
    algorithm, draft, _ = make(Eagle3Config(), DRAFT_VOCAB)
    before = [p.clone() for p in draft.parameters()]
    tensors = {name: torch.zeros_like(tensor) for name, tensor in exported().items()}
    del tensors["norm.weight"]
    tensors |= {"more": torch.zeros(1), "fc.weight": torch.zeros(2, 2)}
    with pytest.raises(UserErrors) as caught:
        algorithm.load_exported(draft, tensors)
    assert [next(n for n in ("norm.weight", "more", "fc.weight") if n in m) for m in caught.value.messages] == [
        "norm.weight",
        "fc.weight",
        "more",
    ]
    assert all(torch.equal(a, b) for a, b in zip(before, draft.parameters(), strict=True))


def test_config_says_what_each_engine_asks_for() -> None:
    algorithm, draft, _ = make(Eagle3Config(preset="eagle3.1"), DRAFT_VOCAB)
    config = algorithm.export(draft, facts()).config
    expected = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "draft_vocab_size": DRAFT_VOCAB,
        "tie_word_embeddings": False,
        "num_hidden_layers": 1,
        "num_aux_hidden_states": 3,
        # The inputs of these layers are the outputs of those before them.
        "eagle_aux_hidden_state_layer_ids": [2, 6, 9],
        "eagle_config": {"use_aux_hidden_state": True, "eagle_aux_hidden_state_layer_ids": [1, 5, 8]},
        "rope_theta": 10000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "fc_norm": True,
        "norm_output": True,
        "norm_before_residual": False,
    }
    assert {key: config[key] for key in expected} == expected
    assert json.loads(json.dumps(config)) == config


@pytest.mark.parametrize(("positions", "axes"), [("target", [2, 1, 1]), ("temporal", None), ("sequential", None)])
def test_axes_of_positions_are_exported_where_engines_read_them_if_the_draft_turns_by_them(
    positions: Any, axes: list[int] | None
) -> None:
    algorithm, draft, target = make(Eagle3Config(positions=positions), None, images=True)
    config = algorithm.export(draft, target.facts).config
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    read = LlamaConfig(**json.loads(json.dumps(config)))
    assert read.rope_parameters.get("mrope_section") == axes
    assert read.rope_parameters["rope_theta"] == config["rope_theta"] == 10000.0
