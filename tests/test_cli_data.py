"""`specdec data`: inspect, vocab and generate on the tiny target."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import toy_plugin
from toy_runs import toy_config
from typer.testing import CliRunner

from specdec_core.cli.data import app
from specdec_core.config.show import to_toml
from specdec_core.data.prompts import read_prompts
from specdec_core.errors import UserError, UserErrors

Run = Callable[..., str]


@pytest.fixture(scope="module")
def toy_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_plugin.install(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def config(
    tmp_path: Path,
    toy_path: Path,
    tiny_target_dir: Path,
    conversations_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    monkeypatch.syspath_prepend(toy_path)
    file = tmp_path / "run.toml"
    file.write_text(to_toml(toy_config(tiny_target_dir, conversations_file, tmp_path / "run")))
    return file


@pytest.fixture
def specdec_data(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "150")

    def call(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    return call


def test_inspect_shows_what_is_learned(specdec_data: Run, config: Path, conversations_file: Path) -> None:
    shown = specdec_data("inspect", config, "-n", 2)
    first, second = (json.loads(line)["conversations"] for line in conversations_file.read_text().splitlines()[:2])
    for record in (first, second):
        for message in record:
            text = message["content"]
            assert (f"⟦{text}<|im_end|>⟧" if message["role"] == "assistant" else f"user\n{text}<|im_end|>") in shown
    assert shown.count("conversations.jsonl:") == 2
    assert "data.train: 40 conversations gave 40 sequences of " in shown


def test_inspect_counts_a_special_token_that_stands_many_times(
    specdec_data: Run, config: Path, conversations_file: Path
) -> None:
    pads = {"role": "user", "content": "see " + "<|endoftext|>" * 30 + "<|im_start|>" * 2 + " and zzzzzzzzzz"}
    conversations_file.parent.joinpath("pads.jsonl").write_text(
        json.dumps({"messages": [pads, {"role": "assistant", "content": "x"}]})
    )
    shown = specdec_data("inspect", config, f"data.train=['{conversations_file.parent}/pads.jsonl']")
    assert "see <|endoftext|>×30<|im_start|><|im_start|> and zzzzzzzzzz<|im_end|>" in shown


def test_inspect_reports_every_split_and_takes_overrides(
    specdec_data: Run, config: Path, conversations_file: Path
) -> None:
    shown = specdec_data("inspect", config, "-n", 0, "data.packing=false", f"data.validation=['{conversations_file}']")
    assert "⟦" not in shown
    assert [line.split(":")[0] for line in shown.splitlines() if line.startswith("data.")] == [
        "data.train",
        "data.validation",
    ]
    assert "packed" not in shown


def test_vocab_shows_coverage_up_to_the_whole_vocabulary(
    specdec_data: Run, config: Path, conversations_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(
        json.dumps({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "§§§§"}]})
    )
    shown = specdec_data("vocab", config, f"data.validation=['{other}']")
    (row,) = re.findall(r"│ +512 │ +([\d.]+)% │ +([\d.]+)% │", shown)
    assert row == ("100.00", "100.00")
    assert "of data.train" in shown
    assert "of data.validation" in shown


def test_no_training_file_is_the_users_to_mend(config: Path) -> None:
    with pytest.raises(UserError, match=r"data\.train names no file"):
        CliRunner().invoke(app, ["inspect", str(config), "data.train=[]"], catch_exceptions=False)


def prompts_file(path: Path, count: int) -> Path:
    lines = [
        {"id": f"p{n}", "family": "x", "messages": [{"role": "user", "content": f"count {n} apple"}]}
        for n in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_generate_answers_prompts_and_goes_on_where_it_stopped(
    specdec_data: Run, tiny_target_dir: Path, tmp_path: Path
) -> None:
    prompts, out = prompts_file(tmp_path / "prompts.jsonl", 6), tmp_path / "out.jsonl"
    options = ["--target", tiny_target_dir, "--backbone", "causal-lm", "--max-new-tokens", 6, "--batch-size", 2]
    assert "6 prompts gave 6 conversations" in specdec_data("generate", prompts, *options, "--out", out)
    whole = out.read_text()
    records = [json.loads(line) for line in whole.splitlines()]
    assert [(record["id"], record["family"]) for record in records] == [(f"p{n}", "x") for n in range(6)]
    assert all([m["role"] for m in record["conversations"]] == ["user", "assistant"] for record in records)
    assert "all 6 prompts have been answered" in specdec_data("generate", prompts, *options, "--out", out)
    out.write_text("".join(whole.splitlines(keepends=True)[:2]) + '{"id": "p2", "conv')
    assert "4 prompts gave 4 conversations" in specdec_data("generate", prompts, *options, "--out", out)
    assert out.read_text() == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--out": "out.jsonl.gz"}, r"write a \.jsonl file and compress it afterwards"),
        ({"--dtype": "int8"}, "--dtype is int8; it may be float32, bfloat16 or float16"),
        ({"--images": "soft"}, "--images is soft; it may be strict or lenient"),
        ({"--backbone": "causal_lm"}, "causal-lm"),
        ({"--target": "./absent"}, "absent"),
        ({"--out": "absent/out.jsonl"}, r"absent/out\.jsonl: cannot be written: No such file or directory"),
    ],
)
def test_what_generate_cannot_do(
    changes: dict[str, str], message: str, tiny_target_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options = {"--target": str(tiny_target_dir), "--backbone": "causal-lm", "--out": "out.jsonl", **changes}
    arguments = [part for option in options.items() for part in option]
    prompts = prompts_file(tmp_path / "prompts.jsonl", 1)
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, ["generate", str(prompts), *arguments], catch_exceptions=False)


def test_prompts_are_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    question = {"role": "user", "content": "why?"}
    answer = {"role": "assistant", "content": "because"}
    lines = [
        {"id": "a", "messages": [question]},
        {"messages": [{"from": "human", "value": "why?"}, answer], "truncated": True},
        {"id": "a", "messages": [question]},
        {"messages": [answer]},
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]},
        {"messages": []},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserErrors) as caught:
        read_prompts(file)
    assert [re.sub(r"^.*jsonl:", "", text)[:60] for text in caught.value.messages] == [
        '3: has the id "a" of line 1; give each its own',
        "4: has no message of the user, so there is nothing to answer",
        '5: a message has a part of type "image", and this target rea',
        "6: messages is empty",
    ]
    file.write_text("\n".join(map(json.dumps, lines[:2])))
    assert read_prompts(file) == [
        {"id": "a", "conversations": [question]},
        {"id": "2", "conversations": [question, answer]},
    ]
    file.write_text("\n")
    with pytest.raises(UserError, match="holds no prompt; every line is blank"):
        read_prompts(file)
