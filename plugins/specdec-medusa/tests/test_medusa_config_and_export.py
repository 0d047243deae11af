"""The draft's config, derived or read, and the exported draft: what engines read, and the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from medusa_support import HIDDEN, VOCAB, facts, features_of, make, packed

from specdec_core.config.run import DraftSection
from specdec_core.data.vocab import VocabMap
from specdec_core.errors import UserError, UserErrors
from specdec_medusa.algorithm import Medusa
from specdec_medusa.config import MedusaConfig

DERIVED: dict[str, Any] = {
    "architectures": ["MedusaModel"],
    "model_type": "medusa",
    "hidden_size": HIDDEN,
    "vocab_size": VOCAB,
    "draft_vocab_size": VOCAB,
    "num_heads": 4,
    "num_hidden_layers": 1,
    "medusa_fc_bias": True,
}
MINIMAL = {"hidden_size": HIDDEN, "vocab_size": VOCAB}


def derived(vocab_size: int | None = None, **options: Any) -> dict[str, Any]:
    return Medusa(MedusaConfig(**options)).draft_config(facts(), DraftSection(vocab_size=vocab_size))


def read(path: Path, content: Any, vocab_size: int | None = None, **options: Any) -> dict[str, Any]:
    path.write_text(json.dumps(content))
    return Medusa(MedusaConfig(**options)).draft_config(facts(), DraftSection(config=path, vocab_size=vocab_size))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "draft.json"


def test_the_config_has_the_keys_that_engines_read_and_none_that_they_misread() -> None:
    assert derived() == DERIVED
    assert derived(20, heads=2, layers=3) == {
        **DERIVED, "draft_vocab_size": 20, "num_heads": 2, "num_hidden_layers": 3
    }  # fmt: skip
    counts = [key for key in DERIVED if "num" in key and ("heads" in key or "layers" in key)]
    assert counts == ["num_heads", "num_hidden_layers"]


def test_a_draft_vocabulary_larger_than_the_targets_is_refused() -> None:
    with pytest.raises(UserError, match=r"^draft.vocab_size is 54; the target's vocabulary holds 53 tokens$"):
        derived(54)


def test_a_json_fills_in_and_keeps_what_it_says_besides(path: Path) -> None:
    assert read(path, {**MINIMAL, "logit_scale": 2, "torch_dtype": None}) == {**DERIVED, "logit_scale": 2}
    assert read(path, {**MINIMAL, "draft_vocab_size": 20})["draft_vocab_size"] == 20


def test_the_authors_names_are_read(path: Path) -> None:
    own = {**MINIMAL, "medusa_num_heads": 3, "medusa_num_layers": 2}
    assert read(path, own, heads=3, layers=2) == {**DERIVED, "num_heads": 3, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_size": 32}, "has hidden_size 32, the target random has 24; use the target's"),
        ({"vocab_size": 60}, "has vocab_size 60, the target random has 53; use the target's"),
        ({"num_heads": 5}, r"has num_heads 5, the run's \[algorithm\] 4; make them agree"),
        ({"medusa_num_heads": 5}, r"has num_heads 5, the run's \[algorithm\] 4; make them agree"),
        ({"num_hidden_layers": 2}, r"has num_hidden_layers 2, the run's \[algorithm\] 1; make them agree"),
        ({"draft_vocab_size": 54}, "has draft_vocab_size 54, the target's vocabulary holds 53"),
        ({"medusa_fc_bias": False}, "has medusa_fc_bias false, the draft's layers have biases; set it to true"),
        ({"num_attention_heads": 4}, "has num_attention_heads, which engines would take for the number of heads"),
        ({"num_heads": "4"}, 'num_heads: found "4"; allowed: a whole number'),
    ],
)
def test_each_disagreement_is_named(path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserErrors, match=sentence) as caught:
        read(path, {**MINIMAL, **changes})
    assert len(caught.value.messages) == 1
    assert str(path) in str(caught.value)


def test_all_disagreements_come_at_once(path: Path) -> None:
    with pytest.raises(UserErrors) as caught:
        read(path, {"hidden_size": 32, "num_heads": 3, "draft_vocab_size": 30}, vocab_size=20)
    assert len(caught.value.messages) == 4


# Export


def shapes(vocab: int, heads: int, layers: int) -> dict[str, list[int]]:
    own: dict[str, list[int]] = {}
    for head in range(heads):
        for layer in range(layers):
            own[f"blocks.{head}.layers.{layer}.weight"] = [HIDDEN, HIDDEN]
            own[f"blocks.{head}.layers.{layer}.bias"] = [HIDDEN]
        own[f"lm_heads.{head}.weight"] = [vocab, HIDDEN]
    return own


@pytest.mark.parametrize(("heads", "layers"), [(1, 1), (3, 2)])
def test_names_and_shapes_are_those_that_engines_read(heads: int, layers: int) -> None:
    algorithm, draft, _ = make(MedusaConfig(heads=heads, layers=layers), None)
    found = algorithm.export(draft, facts())
    assert {name: list(tensor.shape) for name, tensor in found.tensors.items()} == shapes(VOCAB, heads, layers)
    assert found.config == json.loads(json.dumps(found.config)) == draft.config


def test_a_part_of_the_vocabulary_comes_with_its_map() -> None:
    algorithm, draft, _ = make(MedusaConfig(heads=1), 20)
    tensors = algorithm.export(draft, facts()).tensors
    assert tensors.keys() == {*shapes(20, 1, 1), "d2t", "t2d"}
    assert draft.draft_ids is not None
    assert (torch.arange(20) + tensors["d2t"]).tolist() == draft.draft_ids.tolist()
    assert tensors["t2d"].nonzero().flatten().tolist() == draft.draft_ids.tolist()


@pytest.mark.parametrize("vocab", [None, 20])
def test_a_draft_reads_back_exactly(vocab: int | None) -> None:
    algorithm, draft, target = make(MedusaConfig(heads=2, layers=2), vocab)
    found = algorithm.export(draft, facts())
    ids = None if vocab is None else VocabMap(found.tensors["t2d"].nonzero().squeeze(1), VOCAB)
    torch.manual_seed(5)
    other = algorithm.build_draft(json.loads(json.dumps(found.config)), target, ids)
    algorithm.load_exported(other, found.tensors)
    batch = packed([["xxxxxxxx", "..xxxx"]], length=16)
    losses = [
        algorithm.training_step(d, batch, features_of(batch), target, torch.ones(2)).loss.item() for d in (draft, other)
    ]
    assert losses[0] == losses[1] != 0


def test_missing_unexpected_and_misshapen_tensors_are_named_at_once() -> None:
    algorithm, draft, _ = make(MedusaConfig(heads=1), 20)
    before = [p.clone() for p in draft.parameters()]
    tensors = dict(algorithm.export(draft, facts()).tensors)
    del tensors["blocks.0.layers.0.bias"]
    tensors |= {"lm_heads.0.weight": torch.zeros(21, HIDDEN), "lm_heads.1.weight": torch.zeros(20, HIDDEN)}
    with pytest.raises(UserErrors) as caught:
        algorithm.load_exported(draft, tensors)
    assert list(caught.value.messages) == [
        "draft tensor blocks.0.layers.0.bias is missing",
        "draft tensor lm_heads.0.weight has shape [21, 24], expected [20, 24]",
        "draft tensor lm_heads.1.weight is not one of this draft's",
    ]
    assert all(torch.equal(a, b) for a, b in zip(before, draft.parameters(), strict=True))
