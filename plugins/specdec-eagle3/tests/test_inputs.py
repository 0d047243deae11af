"""EAGLE-3 through the command's own path: types that differ between target and draft, draft JSONs of wrong types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from toy_runs import lines, toy_config, train, weights

from specdec_core.config.run import DraftSection
from specdec_core.errors import UserError, UserErrors
from specdec_core.target.base import Target
from specdec_eagle3.algorithm import Eagle3
from specdec_eagle3.config import Eagle3Config


@pytest.mark.parametrize("implementation", ["fast", "plain"])
@pytest.mark.parametrize(
    ("target", "draft"), [("bfloat16", "float32"), ("float32", "bfloat16"), ("float16", "float32")]
)
def test_target_and_draft_may_be_of_different_types(
    target: str, draft: str, implementation: str, tiny_target_dir: Path, conversations_file: Path, tmp_path: Path
) -> None:
    config = toy_config(
        tiny_target_dir,
        conversations_file,
        tmp_path / "run",
        algorithm={"name": "eagle3", "steps": 2, "regression": 0.1, "implementation": implementation},
        train={"dtype": draft, "max_steps": 2, "accumulation": 1},
    )
    config["target"]["dtype"] = target
    run, _ = train(config)
    assert len(lines(run)) == 2
    assert all(tensor.isfinite().all() for tensor in weights(run).values())


@pytest.fixture
def shape(tiny_target: Target) -> dict[str, Any]:
    """A draft JSON that fits the tiny target."""
    sizes = {"hidden_size": tiny_target.facts.hidden_size, "vocab_size": tiny_target.facts.vocab_size}
    return {**sizes, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}


def read(shape: dict[str, Any], target: Target, path: Path) -> dict[str, Any]:
    path.write_text(json.dumps(shape))
    return Eagle3(Eagle3Config()).draft_config(target.facts, DraftSection(config=path))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"intermediate_size": "big"}, 'intermediate_size: found "big"; allowed: a whole number.'),
        ({"intermediate_size": 3.5}, "intermediate_size: found 3.5; allowed: a whole number."),
        ({"num_attention_heads": 0}, "num_attention_heads: found 0; allowed: greater than or equal to 1."),
        ({"rms_norm_eps": "a"}, 'rms_norm_eps: found "a"; allowed: a number.'),
        ({"draft_vocab_size": "x"}, 'draft_vocab_size: found "x"; allowed: a whole number.'),
        (
            {"eagle_aux_hidden_state_layer_ids": [2, "a"]},
            'eagle_aux_hidden_state_layer_ids.1: found "a"; allowed: a whole number.',
        ),
    ],
)
def test_a_value_of_the_wrong_type_is_named(
    shape: dict[str, Any], changes: dict[str, Any], sentence: str, tiny_target: Target, tmp_path: Path
) -> None:
    path = tmp_path / "draft.json"
    with pytest.raises(UserErrors) as caught:
        read({**shape, **changes}, tiny_target, path)
    assert caught.value.messages == (f"draft.config: {path}: {sentence}",)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_key_value_heads": 3}, "has 4 attention heads, which 3 key-value heads cannot share evenly"),
        ({"head_dim": 7}, "gives head_dim 7; rotary embedding needs an even one"),
        ({"num_attention_heads": 100, "num_key_value_heads": 1}, "gives head_dim 0"),
    ],
)
def test_heads_that_attention_cannot_use_are_refused(
    shape: dict[str, Any], changes: dict[str, Any], sentence: str, tiny_target: Target, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        read({**shape, **changes}, tiny_target, tmp_path / "draft.json")


def test_null_is_a_key_that_is_not_given(shape: dict[str, Any], tiny_target: Target, tmp_path: Path) -> None:
    unset = {"head_dim": None, "rope_scaling": None, "draft_vocab_size": None}
    assert read({**shape, **unset}, tiny_target, tmp_path / "a.json") == read(shape, tiny_target, tmp_path / "b.json")


def test_an_unknown_rope_is_refused(shape: dict[str, Any], tiny_target: Target, tmp_path: Path) -> None:
    config = read({**shape, "rope_parameters": {"rope_type": "foo"}}, tiny_target, tmp_path / "draft.json")
    with pytest.raises(UserError, match='rope_type is "foo"; allowed: default, '):
        Eagle3(Eagle3Config()).build_draft(config, tiny_target, None)
