from __future__ import annotations

import errno
import io
import json
import logging
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_plugin
from rich.console import Console
from toy_runs import command, lines, resolved, steps, toy_config, train, weights

from specdec_core.checkpoint import store
from specdec_core.checkpoint.open import open_run
from specdec_core.config.load import read_toml
from specdec_core.errors import UserError
from specdec_core.export.run import export_run
from specdec_core.nn.int8 import Int8Linear
from specdec_core.registry.hooks import hookimpl
from specdec_core.registry.lock import read_lock
from specdec_core.registry.registry import Registry
from specdec_core.train import rundir
from specdec_core.train.metrics_log import MetricsLog
from specdec_core.train.progress import ProgressView, summary
from specdec_core.train.run import Interrupted, RunInfo
from specdec_core.train.rundir import exclusive
from specdec_core.train.score import Score
from specdec_core.train.trainer import run_training

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def make(tiny_target_dir: Path, conversations_file: Path, tmp_path: Path, toy: None) -> Make:
    """Configs of runs in `tmp_path/run`."""

    def config(**sections: Any) -> dict[str, Any]:
        return toy_config(tiny_target_dir, conversations_file, tmp_path / "run", **sections)

    return config


class Observer:
    def __init__(self) -> None:
        self.events: list[Any] = []

    @hookimpl
    def specdec_run_started(self, run: RunInfo) -> None:
        assert (run.directory / "config.toml").exists()
        assert (run.directory / "plugins.lock.json").exists()
        self.events.append(("started", run.name, run.start_step, run.total_steps))

    @hookimpl
    def specdec_step_finished(self, step: int, metrics: Mapping[str, float]) -> None:
        self.events.append(("step", step, metrics["loss"]))

    @hookimpl
    def specdec_checkpoint_saved(self, step: int, path: Path) -> None:
        assert store.load(path).step == step
        self.events.append(("saved", step))

    @hookimpl
    def specdec_run_finished(self, status: str) -> None:
        self.events.append(("finished", status))


def test_a_run_learns_and_leaves_everything_behind(make: Make) -> None:
    observer = Observer()
    run, screen = train(make(), observer=observer)
    metrics = lines(run)
    assert [line["step"] for line in metrics] == list(range(1, 13))
    assert metrics[-1]["loss"] < 0.9 * metrics[0]["loss"]
    assert {"epoch", "tokens", "lr", "grad_norm", "supervised_tokens", "accuracy/1"} <= metrics[0].keys()
    assert metrics[0]["tokens"] < metrics[1]["tokens"]
    assert {path.name for path in run.iterdir()} == {
        ".lock",
        "checkpoints",
        "config.toml",
        "draft",
        "metrics.jsonl",
        "plugins.lock.json",
    }
    assert read_toml(run / "config.toml")["train"]["max_steps"] == 12
    assert "specdec-toy" in {plugin.distribution for plugin in read_lock(run / "plugins.lock.json").plugins}

    # The exported draft is the last checkpoint's.
    saved = store.load(store.checkpoint_path(run, 12))
    assert all(
        torch.equal(saved.draft[name.removeprefix("toy.")], t) for name, t in weights(run).items() if "." in name
    )
    assert json.loads((run / "draft" / "specdec.json").read_text())["step"] == 12

    steps_seen = [event[1] for event in observer.events if event[0] == "step"]
    assert (observer.events[0], observer.events[-1]) == (("started", "run", 0, 12), ("finished", "completed"))
    assert steps_seen == list(range(1, 13))
    assert [event for event in observer.events if event[0] == "saved"] == [("saved", 4), ("saved", 8), ("saved", 12)]
    assert observer.events.index(("saved", 4)) == observer.events.index(("step", 5, metrics[4]["loss"])) - 1
    assert f"the draft is in {run / 'draft'}" in screen
    assert "step 12/12  loss " in screen


def test_the_same_config_gives_the_same_weights_and_another_seed_others(make: Make, tmp_path: Path) -> None:
    runs = [train(make(train={"output_dir": str(tmp_path / str(i)), "seed": i // 2}))[0] for i in range(3)]
    first, again, other = (weights(run) for run in runs)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert lines(runs[0]) == lines(runs[1])
    assert not torch.equal(first["toy.mix.weight"], other["toy.mix.weight"])


def test_log_every_sums_steps_up(make: Make, tmp_path: Path) -> None:
    every = lines(train(make(train={"output_dir": str(tmp_path / "every")}))[0])
    third = lines(train(make(train={"output_dir": str(tmp_path / "third"), "log_every": 5}))[0])
    assert [line["step"] for line in third] == [5, 10, 12]
    for group, line in zip((every[:5], every[5:10], every[10:]), third, strict=True):
        assert line["loss"] == pytest.approx(sum(one["loss"] for one in group) / len(group))
        assert line["supervised_tokens"] == sum(one["supervised_tokens"] for one in group)
        assert line["tokens"] == group[-1]["tokens"]


def test_an_epoch_is_every_row_once(make: Make) -> None:
    run, screen = train(make(train={"epochs": 1.0, "max_steps": None, "accumulation": 3}))
    total = int(screen.split(" sequences of ")[1].split()[0].replace(",", ""))
    last = lines(run)[-1]
    assert last["tokens"] == total
    assert last["epoch"] == 1.0
    state = json.loads((store.checkpoint_path(run, int(last["step"])) / "state.json").read_text())
    rows = state["trainer"]["loop"]["batches"]
    assert last["step"] == math.ceil(rows / 3)
    assert rows % 3, "the last window should be a short one"


def test_checkpoints_are_kept_by_age_and_by_score(make: Make, conversations_file: Path) -> None:
    config = make(
        train={"save_every": 2, "keep_last": 1, "lr": 3.0, "schedule": "constant", "max_grad_norm": None},
        data={"validation": [str(conversations_file)]},
    )
    run, _ = train(config)
    validated = {int(line["step"]): line["validation/loss"] for line in lines(run) if "validation/loss" in line}
    assert sorted(validated) == [2, 4, 6, 8, 10, 12]
    best = min(validated, key=lambda step: validated[step])
    assert best != 12, "choose a learning rate at which the last step is not the best"
    assert steps(run) == sorted({best, 12})
    assert store.best(run) == store.checkpoint_path(run, best)


def test_validation_has_its_own_pace_and_changes_nothing_that_is_learned(
    make: Make, conversations_file: Path, tmp_path: Path
) -> None:
    plain, _ = train(make(train={"output_dir": str(tmp_path / "plain")}))
    data = {"validation": [str(conversations_file)]}
    config = make(train={"output_dir": str(tmp_path / "run"), "validate_every": 5, "log_every": 7}, data=data)
    run, _ = train(config)
    assert [(line["step"], "loss" in line, "validation/accuracy/1" in line) for line in lines(run)] == [
        (5, False, True),
        (7, True, False),
        (10, False, True),
        (12, True, True),
    ]
    assert all(torch.equal(weights(plain)[name], tensor) for name, tensor in weights(run).items())


def test_scores_are_compared_within_one_metric() -> None:
    lower, higher = Score.of({"loss": 2.0, "validation/loss": 1.0}, 3), Score.of({"acceptance_length": 2, "loss": 9}, 4)
    assert lower == Score(3, "validation/loss", 1.0)
    assert higher == Score(4, "acceptance_length", 2)
    assert Score.of({"accuracy/1": 1.0}, 5) is None
    assert Score(6, "validation/loss", 0.5).beats(lower)
    assert not Score(6, "validation/loss", 1.5).beats(lower)
    assert Score(6, "acceptance_length", 2.5).beats(higher)
    assert not Score(6, "acceptance_length", 2).beats(higher)
    assert higher.beats(None)


def test_the_draft_starts_from_the_target_or_at_random(make: Make, tmp_path: Path) -> None:
    losses = {}
    for init in ("target", "random"):
        config = make(draft={"init": init}, train={"output_dir": str(tmp_path / init), "lr": 1e-9, "max_steps": 1})
        run, _ = train(config)
        losses[init] = open_run(run, Registry.discover()).draft.heads[0].weight.abs().mean().item()  # type: ignore[union-attr, index]
    assert losses["target"] != pytest.approx(losses["random"], rel=0.05)


@pytest.mark.parametrize("source", ["run", "run/checkpoints/step-00000004", "run/draft"])
def test_a_run_starts_from_weights_of_another(make: Make, tmp_path: Path, source: str) -> None:
    first, _ = train(make(train={"keep_last": 9}))
    # Other data would give another draft vocabulary; the weights decide.
    config = make(
        draft={"init_from": str(tmp_path / source)},
        data={"max_tokens": 300},
        train={"output_dir": str(tmp_path / "second"), "max_steps": 1, "lr": 1e-12},
    )
    second, _ = train(config)
    step = 4 if "step" in source else 12
    expected = store.load(store.checkpoint_path(first, step)).draft
    found = store.load(store.checkpoint_path(second, 1)).draft
    assert torch.equal(found["ids"], expected["ids"])
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-9, rtol=0)


def test_weights_that_do_not_fit_are_named(make: Make, tmp_path: Path) -> None:
    train(make(train={"max_steps": 1}))
    config = make(
        draft={"init_from": str(tmp_path / "run"), "vocab_size": 32}, train={"output_dir": str(tmp_path / "b")}
    )
    with pytest.raises(
        UserError, match=r"has a draft vocabulary of 64, this run one of 32; set draft\.vocab_size = 64"
    ):
        train(config)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"algorithm": {"name": "stray"}}, "toy_draft:Stray of specdec-toy 0.1 is neither a TrainedAlgorithm nor a"),
        ({"data": {"train": []}}, r"data\.train names no file"),
        ({"data": {"train": ["/nowhere/x.jsonl"]}}, r"/nowhere/x\.jsonl"),
        ({"target": {"path": "/nowhere/target"}}, r"/nowhere/target"),
        ({"draft": {"vocab_size": 5000}}, r"draft\.vocab_size is 5000; the target's vocabulary allows 1 to 512"),
        ({"draft": {"init_from": "/nowhere/run"}}, r"/nowhere/run does not exist"),
    ],
)
def test_what_cannot_run_is_refused_and_the_directory_stays_free(
    make: Make, sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(make(**sections))
    run, _ = train(make(train={"max_steps": 1}))
    assert steps(run) == [1]


def test_a_vocabulary_that_does_not_fit_is_refused(make: Make, tiny_target_dir: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    shutil.copytree(tiny_target_dir, small)
    facts = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**facts, "vocab_size": 300}))
    with pytest.raises(UserError, match=r"token id \d+, but the target's vocabulary ends at 299"):
        train(make(target={"path": str(small)}))


def test_a_directory_with_a_run_is_not_written_over(make: Make) -> None:
    run, _ = train(make(train={"max_steps": 1}))
    before = lines(run)
    with pytest.raises(UserError, match=r"run already holds a run; add --resume to continue it, or choose another"):
        train(make(train={"max_steps": 1}))
    assert lines(run) == before


def test_a_directory_in_which_another_process_trains_is_refused(make: Make, tmp_path: Path) -> None:
    with exclusive(tmp_path / "run"), pytest.raises(UserError, match="another process is training here"):
        train(make())


def test_a_directory_that_cannot_be_made_is_named(make: Make, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match=r"^train\.output_dir: .*run cannot be made or written to \(File exists\)"):
        train(make())


def test_a_directory_that_looks_used_holds_all_that_resuming_needs(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed_after_one_file(path: Path, text: str) -> None:
        path.write_text(text)
        raise KeyboardInterrupt

    config = make(train={"max_steps": 1})
    with monkeypatch.context() as patch:
        patch.setattr(rundir, "write_text", killed_after_one_file)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    run, _ = train(config, resume=True)
    assert steps(run) == [1]


def test_metrics_that_are_not_text_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\xfe\n{"step": 3}\n')
    MetricsLog(path).rewind(5)
    assert path.read_text() == '{"step": 1}\n'


def test_a_loss_that_is_not_a_number_names_the_step_and_the_last_checkpoint(make: Make) -> None:
    observer = Observer()
    config = make(algorithm={"name": "toy", "poison": 13})
    with pytest.raises(UserError, match=r"step 7: the loss is nan.*draft\.init_from = .*step-00000004"):
        train(config, observer=observer)
    run = Path(config["train"]["output_dir"])
    assert observer.events[-1] == ("finished", "failed")
    assert store.load(store.checkpoint_path(run, 4)).step == 4
    assert lines(run)[-1]["step"] == 6


def test_an_opened_run_is_the_draft_that_was_saved(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, _ = train(make(train={"keep_last": 3, "dtype": "bfloat16"}))
    registry = Registry.discover()
    opened = open_run(run, registry, overrides=["eval.num_draft_tokens=7"])
    assert (opened.step, opened.path) == (12, store.checkpoint_path(run, 12))
    assert (opened.config.eval.num_draft_tokens, opened.resolved.config.algorithm.name) == (7, "toy")
    assert {p.dtype for p in opened.draft.parameters()} == {torch.bfloat16}
    assert not opened.draft.training
    exact = open_run(store.checkpoint_path(run, 4), registry, draft_dtype="float32")
    saved = store.load(store.checkpoint_path(run, 4)).draft
    assert exact.step == 4
    assert all(torch.equal(saved[name], tensor) for name, tensor in exact.draft.state_dict().items())
    rounded = open_run(run, registry, overrides=["eval.draft_dtype=int8"])
    assert (rounded.draft_dtype, opened.draft_dtype) == ("int8", "bfloat16")
    assert {type(layer) for layer in rounded.draft.heads} == {Int8Linear}  # type: ignore[union-attr]
    assert not caplog.records
    with pytest.raises(UserError, match=r"algorithm\.nonsense"):
        open_run(run, registry, overrides=["algorithm.nonsense=1"])


def test_a_checkpoint_is_exported_as_the_run_exported_it(make: Make, tmp_path: Path) -> None:
    run, _ = train(make(train={"dtype": "bfloat16", "keep_last": 3}))
    registry = Registry.discover()
    assert export_run(run, tmp_path / "out", registry) == 12
    for name in ("config.json", "model.safetensors", "specdec.json"):
        assert (tmp_path / "out" / name).read_bytes() == (run / "draft" / name).read_bytes()
    best = store.best(run)
    assert best is not None
    assert export_run(run, tmp_path / "out", registry, exporter="hf", best=True) == store.load(best).step
    with pytest.raises(UserError, match='no exporter "gguf"'):
        export_run(run, tmp_path / "out", registry, exporter="gguf")
    with pytest.raises(UserError, match=r"does not exist; give a run directory"):
        export_run(tmp_path / "none", tmp_path / "out", registry)


class Signaller:
    """Sends signals to this process when a step has ended."""

    def __init__(self, step: int, *numbers: signal.Signals) -> None:
        self.step, self.numbers = step, numbers

    @hookimpl
    def specdec_step_finished(self, step: int) -> None:
        if step == self.step:
            for number in self.numbers:
                os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_and_says_how_to_go_on(make: Make, number: signal.Signals) -> None:
    handler, screen = signal.getsignal(number), io.StringIO()
    run, registry = resolved(make())
    registry.register_observer(Signaller(6, number))
    with pytest.raises(Interrupted):
        run_training(run, registry, False, Console(file=screen))
    directory = run.config.train.output_dir
    assert steps(directory) == [4, 6]
    assert lines(directory)[-1]["step"] == 6
    assert f"{number.name}: the step will end and a checkpoint be saved; once more stops at once" in screen.getvalue()
    assert f"stopped by {number.name} after step 6, whose checkpoint is saved; " in screen.getvalue()
    assert "run the same command with --resume to go on" in screen.getvalue()
    assert signal.getsignal(number) is handler


def test_a_second_interrupt_stops_at_once(make: Make) -> None:
    config = make()
    with pytest.raises(KeyboardInterrupt):
        train(config, observer=Signaller(6, signal.SIGINT, signal.SIGINT))
    assert steps(Path(config["train"]["output_dir"])) == [4]


def test_an_interrupt_in_the_last_step_changes_nothing(make: Make) -> None:
    run, _ = train(make(), observer=Signaller(12, signal.SIGINT))
    assert (run / "draft").is_dir()


def test_an_interrupted_command_exits_with_130(make: Make, toy_path: Path) -> None:
    config = make(
        algorithm={"name": "toy", "seconds": 0.1}, train={"save_every": None, "max_steps": 500, "epochs": 500}
    )
    run = Path(config["train"]["output_dir"])
    process = command(config, [toy_path])
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, screen = process.communicate(timeout=60)
    assert process.returncode == 130, screen
    assert "Traceback" not in screen
    assert "run the same command with --resume to go on" in screen
    assert len(steps(run)) == 1


def test_a_full_disk_ends_the_run_with_one_sentence_and_space_lets_it_go_on(
    make: Make, small_disk: Path, tmp_path: Path
) -> None:
    run, filler = small_disk / "run", small_disk / "filler"
    filler.write_bytes(b"0" * 1_150_000)
    train_section = {"output_dir": str(run), "save_every": 2, "keep_last": 1}
    config = make(train=train_section, data={"cache_dir": str(tmp_path / "tokens")})
    with pytest.raises(UserError) as caught:
        train(config)
    message = str(caught.value)
    assert message.startswith(f"no space left on the disk of {run}: the checkpoint of step ")
    last = store.latest(run)
    assert last is not None
    assert f"the last complete checkpoint is {last}; free " in message
    assert "\n" not in message
    filler.unlink()
    train(config, resume=True)
    assert [line["step"] for line in lines(run)] == list(range(1, 13))


def test_a_disk_that_fills_up_between_checkpoints_is_told_too(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/run/metrics.jsonl")

    monkeypatch.setattr(MetricsLog, "write", full)
    with pytest.raises(UserError, match=r"no space left on the disk of runs/run/metrics\.jsonl; free some"):
        train(make())


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere() -> None:
    metrics = {
        "loss": 2.0,
        "accuracy/10": 0.1,
        "accuracy/2": 0.25,
        "acceptance_length": 1.5,
        "tokens_per_second": 1234.5,
    }
    assert summary(metrics) == "loss 2.000  accuracy 0.25 0.10  τ 1.50 (simulated)  1,234 tok/s"
    assert summary({"validation/loss": 1.0}) == "validation 1.000"
    for terminal in (False, True):
        screen = io.StringIO()
        with ProgressView(Console(file=screen, force_terminal=terminal, width=160), start=4, total=100) as view:
            for step in range(5, 101):
                view.step_done(step, metrics)
            view.say("a sentence with [brackets] " + "x" * 200)
        shown = screen.getvalue()
        assert "a sentence with [brackets] " + "x" * 200 in shown
        if terminal:
            assert "100/100" in shown
        else:
            assert [line.split()[1] for line in shown.splitlines()[:-1]] == ["5/100", "100/100"]
            assert "\x1b" not in shown


def test_a_plugin_of_another_version_is_not_resumed_with(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, _ = train(make(train={"max_steps": 1}))
    newer = tmp_path / "newer"
    newer.mkdir()
    monkeypatch.syspath_prepend(toy_plugin.install(newer, version="0.2"))
    with pytest.raises(UserError, match=r"algorithm toy was of specdec-toy 0\.1 and is now of specdec-toy 0\.2"):
        train(make(train={"max_steps": 1}), resume=True)
    with caplog.at_level(logging.WARNING):
        open_run(run, Registry.discover())
    assert "is now of specdec-toy 0.2" in caplog.text


def test_resolved_runs_are_json_and_read_back(make: Make) -> None:
    run, _ = resolved(make())
    assert json.loads(json.dumps(run.table)) == run.table
