"""Drafts for a tiny random vision-language target, through the commands: trained, measured, asked about images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_vision import picture
from tiny_vl import save_vision_model, write_conversations
from toy_runs import lines, toy_config, train
from typer.testing import CliRunner

from specdec_core.cli.main import app

LENGTH = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the target in `target`, and conversations about images."""
    directory = tmp_path_factory.mktemp("images-run")
    save_vision_model(directory / "target")
    write_conversations(directory, 12)
    return directory


def config_of(place: Path, output: Path, **sections: Any) -> dict[str, Any]:
    prompts = {"name": "jsonl", "path": str(place / "conversations.jsonl"), "limit": 3, "category": "pictures"}
    config = toy_config(
        place / "target",
        place / "conversations.jsonl",
        output,
        backbone={"name": "qwen-vl", **sections.pop("backbone", {})},
        train={"max_steps": 4, "save_every": 4, "batch_size": 2, "accumulation": 1},
        eval={"prompts": [prompts], "max_new_tokens": LENGTH, "num_draft_tokens": 3},
        **sections,
    )
    config["data"]["cache_dir"] = str(place / "tokens")
    config["draft"] = {}
    return config


EAGLE = {"name": "eagle3", "steps": 3}


def run(*arguments: str) -> Any:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output + done.stderr
    return done


@pytest.mark.parametrize("algorithm", [EAGLE, {"name": "medusa", "heads": 3, "tree": 9}], ids=lambda a: a["name"])
def test_a_draft_is_trained_measured_and_asked(place: Path, algorithm: dict[str, Any], tmp_path: Path) -> None:
    path, screen = train(config_of(place, tmp_path / "run", algorithm=algorithm))
    assert "12 images" in screen
    losses = [line["loss"] for line in lines(path)]
    assert losses[-1] < losses[0]

    found = json.loads(run("eval", str(path), "--json", 'eval.baselines=["ngram"]').stdout)
    assert found["conditions"]["prompts"] == {"pictures": 3}
    assert [method["outputs"] for method in found["methods"][1:]] == [{"identical": 3}] * 2
    assert found["overlap"]["prompts"]["share"] == 1  # the prompts are those of the training data

    picture(70, 50, seed=9).save(tmp_path / "cat.png")
    options = ["--image", str(tmp_path / "cat.png"), "--max-new-tokens", "9"]
    asked = run("generate", str(path), "what is it?", *options)
    assert asked.stdout == run("generate", str(path), "what is it?", *options, "--no-draft").stdout
    assert asked.stdout != run("generate", str(path), "what is it?", "--max-new-tokens", "9").stdout


def test_what_the_draft_reads_of_images_is_what_the_backbone_says(place: Path, tmp_path: Path) -> None:
    losses = {}
    for embeds in ("merged", "placeholders"):
        path, _ = train(config_of(place, tmp_path / embeds, algorithm=EAGLE, backbone={"draft_embeds": embeds}))
        losses[embeds] = [line["loss"] for line in lines(path)]
    assert losses["merged"] != losses["placeholders"]


def test_a_cache_changes_nothing(place: Path, tmp_path: Path) -> None:
    epochs = {"epochs": 9, "max_steps": 12}
    config = config_of(place, tmp_path / "live", algorithm=EAGLE)
    config["train"] |= epochs
    live, _ = train(config)
    config = config_of(place, tmp_path / "cached", algorithm=EAGLE, cache={"name": "memory"})
    config["train"] |= epochs
    cached, _ = train(config)
    for ours, theirs in zip(lines(cached), lines(live), strict=True):
        assert ours["epoch"] == theirs["epoch"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


@pytest.mark.parametrize(("positions", "axes"), [("target", [2, 3, 3]), ("temporal", None), ("sequential", None)])
def test_the_exported_config_says_which_positions_the_draft_turns_by(
    place: Path, positions: str, axes: list[int] | None, tmp_path: Path
) -> None:
    path, _ = train(config_of(place, tmp_path / "run", algorithm={**EAGLE, "positions": positions}))
    exported = json.loads((path / "draft" / "config.json").read_text())
    assert exported["rope_parameters"].get("mrope_section") == axes
    assert exported["architectures"] == ["LlamaForCausalLMEagle3"]


def test_prompts_whose_images_cannot_be_read_are_all_named(place: Path, tmp_path: Path) -> None:
    path, _ = train(config_of(place, tmp_path / "run", algorithm=EAGLE))
    records = [
        {"id": name, "messages": [{"role": "user", "content": [{"type": "image", "image": image}]}]}
        for name, image in (("a", "none.png"), ("b", str(place / "0.png")), ("c", "other.png"))
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    done = CliRunner().invoke(app, ["eval", str(path), "--prompts", str(file)])
    assert done.exit_code == 2
    assert [line.split(" is missing")[0] for line in done.stderr.splitlines() if "is missing" in line] == [
        "error: prompt a: image 1 (none.png)",
        "error: prompt c: image 1 (other.png)",
    ]
