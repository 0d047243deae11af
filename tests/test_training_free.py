"""Algorithms without training: a config is all that they need, and what a trained draft needs is refused."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_runs import toy_config, train
from typer.testing import CliRunner, Result

from specdec_core.algorithm.base import TrainedAlgorithm, TrainingFreeAlgorithm
from specdec_core.capture.features import CapturePlan
from specdec_core.cli.main import app
from specdec_core.config.show import to_toml
from specdec_core.errors import NothingToTrain

pytestmark = pytest.mark.usefixtures("toy")

Write = Callable[..., Path]


@pytest.fixture
def write(tiny_target_dir: Path, conversations_file: Path, tmp_path: Path) -> Write:
    """A config file, of the algorithm `untrained` unless told otherwise."""

    def config(algorithm: str = "untrained", name: str = "free.toml", **evaluation: Any) -> Path:
        pack = {"name": "jsonl", "path": str(conversations_file), "limit": 2}
        settings = {"prompts": [pack], "max_new_tokens": 6, "num_draft_tokens": 3, **evaluation}
        table = toy_config(
            tiny_target_dir, conversations_file, tmp_path / "run", algorithm={"name": algorithm}, eval=settings
        )
        path = tmp_path / name
        path.write_text(to_toml(table))
        return path

    return config


def specdec(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def refusal(*arguments: str | Path) -> str:
    """The one sentence of a command that is refused."""
    done = specdec(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def test_the_contract_asks_for_a_drafter_and_nothing_else() -> None:
    assert TrainingFreeAlgorithm.__abstractmethods__ == {"drafter"}
    assert {"build_draft", "training_step", "drafter"} <= TrainedAlgorithm.__abstractmethods__
    assert not {"build_draft", "training_step", "export"} & set(dir(TrainingFreeAlgorithm))


def test_it_reads_only_tokens_unless_it_says_otherwise() -> None:
    class Minimal(TrainingFreeAlgorithm):
        def drafter(self, target: object) -> Any: ...

    assert Minimal(None).capture_plan(None) == CapturePlan()  # type: ignore[arg-type]


def test_a_config_is_measured_with_the_target_alone_and_itself(write: Write) -> None:
    done = specdec("eval", write(), "eval.max_new_tokens=9", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [method["method"] for method in found["methods"]] == ["target alone", "draft"]
    assert found["methods"][1]["outputs"] == {"identical": 2}
    assert len(found["methods"][1]["tally"]["proposed"]) == 3
    assert found["conditions"]["max_new_tokens"] == 9
    assert found["conditions"]["draft_dtype"] is None
    report = " ".join(specdec("eval", write()).stdout.split())
    assert "With the draft: " in report
    assert "for comparison" not in report
    assert "float32, cpu" in report


def test_a_config_generates_what_the_target_alone_does(write: Write) -> None:
    texts = [specdec("generate", write(), "A small apple?", *options) for options in ([], ["--no-draft"], ["--k", "1"])]
    assert [done.exit_code for done in texts] == [0, 0, 0]
    assert len({done.stdout for done in texts}) == 1
    assert texts[0].stdout.strip()


def test_training_is_refused_with_the_command_that_measures(write: Write, tmp_path: Path) -> None:
    config = write(name="a b.toml")
    said = refusal("train", config, "eval.max_new_tokens=5")
    command = f"specdec eval '{config}' eval.max_new_tokens=5"
    assert said == f'{config}: algorithm "untrained" has nothing to train; measure it as it is: `{command}`'
    assert not (tmp_path / "run").exists()
    assert specdec(*shlex.split(command)[1:]).exit_code == 0


def test_training_in_memory_is_refused_too(tiny_target_dir: Path, conversations_file: Path, tmp_path: Path) -> None:
    config = toy_config(tiny_target_dir, conversations_file, tmp_path / "run", algorithm={"name": "untrained"})
    with pytest.raises(NothingToTrain, match='algorithm "untrained" has nothing to train'):
        train(config)


def test_there_is_nothing_to_export(write: Write, tmp_path: Path) -> None:
    config = write()
    assert refusal("export", config, "--out", tmp_path / "draft") == (
        f'{config}: algorithm "untrained" has no draft, so there is nothing to export; it is used as it is'
    )
    assert not (tmp_path / "draft").exists()


@pytest.mark.parametrize("command", [["eval"], ["generate"], ["export", "--out", "draft"]])
def test_a_config_of_a_trained_draft_is_not_the_draft(write: Write, tmp_path: Path, command: list[str]) -> None:
    config = write("toy")
    prompt = ["Why?"] if command == ["generate"] else []
    assert refusal(command[0], config, *prompt, *command[1:]) == (
        f'{config}: algorithm "toy" proposes with a trained draft, and a config holds none; give the run directory '
        f"that `specdec train {config}` makes, {tmp_path / 'run'}"
    )


@pytest.mark.parametrize("command", ["eval", "generate"])
def test_a_config_that_is_wrong_or_absent_is_named(write: Write, tmp_path: Path, command: str) -> None:
    prompt = ["Why?"] if command == "generate" else []
    assert refusal(command, tmp_path / "fre.toml", *prompt) == f"{tmp_path}/fre.toml: no such file."
    write()
    assert refusal(command, tmp_path / "fre.toml", *prompt).endswith('no such file. Did you mean "free.toml"?')
    assert "free.toml: algorithm.name: there is no algorithm" in refusal(command, write("untraind"), *prompt)
    assert refusal(command, tmp_path / "runs", *prompt).startswith(
        f"{tmp_path}/runs does not exist; give a run directory"
    )


def test_what_is_no_algorithm_is_a_fault_of_its_plugin(write: Write) -> None:
    assert refusal("eval", write("stray")).endswith(
        "is neither a TrainedAlgorithm nor a TrainingFreeAlgorithm; this is a fault of that plugin"
    )


# Baselines


def test_baselines_are_measured_beside_the_draft_and_called_by_title_and_options(write: Write) -> None:
    run, _ = train(toml(write("toy", baselines=["untrained", {"name": "untrained", "most": 1}])))
    done = specdec("eval", run, "--k", "1,3", "--json")
    assert done.exit_code == 0, done.output
    methods = {(m["method"], m["num_draft_tokens"]): m for m in json.loads(done.stdout)["methods"]}
    names = ("draft", "echo", "echo (most = 1)")
    assert list(methods) == [("target alone", 0), *((name, k) for name in names for k in (1, 3))]
    assert len(methods["echo", 3]["tally"]["proposed"]) == 3
    assert len(methods["echo (most = 1)", 3]["tally"]["proposed"]) == 1
    report = " ".join(specdec("eval", run).stdout.split())
    assert report.index("Echo, for comparison: ") < report.index("Echo (most = 1), for comparison: ")
    bare = json.loads(specdec("eval", run, "eval.baselines=[]", "--json").stdout)
    assert [m["method"] for m in bare["methods"]] == ["target alone", "draft"]


def toml(path: Path) -> dict[str, Any]:
    from specdec_core.config.load import read_toml

    return read_toml(path)


@pytest.mark.parametrize(
    ("baselines", "sentence"),
    [
        (["toy"], 'eval.baselines: algorithm "toy" has to be trained, and a baseline is measured as it is; name one'),
        (["untrained", "untrained"], 'eval.baselines: two ways of decoding are called "echo"; leave one of them out'),
        (["stray"], "toy_draft:Stray of specdec-toy 0.1 is neither"),
    ],
)
def test_what_cannot_be_a_baseline_is_refused(write: Write, baselines: list[str], sentence: str) -> None:
    assert refusal("eval", write(baselines=baselines)).startswith(sentence)


@pytest.mark.parametrize(
    ("baselines", "sentence"),
    [
        (["untraind"], 'eval.baselines.0.name: there is no algorithm "untraind". Did you mean "untrained"?'),
        (
            ["untrained", {"name": "untrained", "moist": 1}],
            "eval.baselines.1.moist: unknown key (found 1). Did you mean",
        ),
        ([{"name": "untrained", "most": "many"}], 'eval.baselines.0.most: found "many"; allowed: a whole number'),
    ],
)
def test_a_baseline_is_checked_with_the_config(write: Write, baselines: list[Any], sentence: str) -> None:
    config = write("toy", baselines=baselines)
    assert refusal("config", "check", config).startswith(f"{config}: {sentence}")


def test_baselines_are_in_the_lock_and_in_the_shown_config(write: Write) -> None:
    from specdec_core.registry.registry import Registry
    from specdec_core.registry.resolve import resolve_file

    resolved = resolve_file(write("toy", baselines=["untrained"]), [], Registry.discover())
    assert [(p.section, p.name) for p in resolved.lock.plugins if p.section == "eval.baselines"] == [
        ("eval.baselines", "untrained")
    ]
    assert resolved.table["eval"]["baselines"] == [{"name": "untrained", "most": 8}]
