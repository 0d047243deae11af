"""The algorithm through the commands, on a tiny target: as a run's own and as a baseline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tiny_models import VOCAB, save_model, save_tokenizer
from typer.testing import CliRunner, Result

from specdec_core.cli.main import app
from specdec_ngram.config import NgramConfig


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole config: a target, prompts and `ngram`."""
    directory = tmp_path_factory.mktemp("ngram")
    save_tokenizer(directory / "target", VOCAB)
    save_model("llama", directory / "target")
    (directory / "prompts.jsonl").write_text('{"prompt": "the red apple and the red apple and the"}\n' * 2)
    (directory / "ngram.toml").write_text(
        f"""
        backbone = "causal-lm"
        algorithm = "ngram"
        [target]
        path = "{directory / "target"}"
        [eval]
        max_new_tokens = 24
        [[eval.prompts]]
        name = "jsonl"
        path = "{directory / "prompts.jsonl"}"
        """
    )
    return directory / "ngram.toml"


def specdec(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def evaluated(*arguments: str) -> dict[str, Any]:
    done = specdec("eval", *arguments, "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_config_alone_is_measured(config: Path) -> None:
    found = evaluated(str(config), "--k", "2,4")
    assert [(m["method"], m["num_draft_tokens"]) for m in found["methods"]] == [
        ("target alone", 0), ("draft", 2), ("draft", 4)
    ]  # fmt: skip
    assert all(method["outputs"] == {"identical": 2} for method in found["methods"][1:])
    assert all(method["tally"]["proposed"] for method in found["methods"][1:])


def test_as_a_baseline_it_is_called_by_its_title_and_what_was_changed(config: Path) -> None:
    baselines = 'eval.baselines=["ngram", {name = "ngram", shortest = 2}]'
    found = evaluated(str(config), baselines)
    names = [method["method"] for method in found["methods"]]
    assert names == ["target alone", "draft", "n-gram lookup", "n-gram lookup (shortest = 2)"]
    same, other = (
        [[r["tally"]["rounds"] for r in found["results"] if r["method"] == name] for name in pair]
        for pair in ((names[1], names[2]), (names[1], names[3]))
    )
    assert same[0] == same[1]
    assert other[0] != other[1]
    report = " ".join(specdec("eval", str(config), baselines).stdout.split())
    assert "N-gram lookup, for comparison: " in report


@pytest.mark.parametrize("options", [{"longest": 0}, {"shortest": 0}, {"longest": 2, "shortest": 3}, {"size": 3}])
def test_options_that_make_no_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        NgramConfig(**options)
