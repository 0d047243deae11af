from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import CrashAfter, assert_same_run, command, lines, steps, toy_config, train, weights

from specdec_core.checkpoint import store
from specdec_core.errors import UserError, UserErrors
from specdec_core.registry.hooks import hookimpl

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def make(tiny_target_dir: Path, conversations_file: Path, tmp_path: Path, toy: None) -> Make:
    """Configs of runs `tmp_path/NAME`."""

    def config(name: str = "run", **sections: Any) -> dict[str, Any]:
        sections["train"] = {"output_dir": str(tmp_path / name), **sections.get("train", {})}
        return toy_config(tiny_target_dir, conversations_file, tmp_path / "run", **sections)

    return config


@pytest.mark.parametrize(
    ("sections", "crash"),
    [
        ({}, 6),
        ({}, 2),
        ({"train": {"log_every": 5, "save_every": 3, "keep_last": 1}}, 10),
        ({"train": {"dtype": "bfloat16", "batch_size": 3, "accumulation": 1, "schedule": "linear"}}, 7),
        ({"train": {"max_steps": None, "epochs": 2.5, "save_every": 1}}, 9),
        ({"draft": {"vocab_size": None, "init": "random"}}, 8),
        ({"cache": {"name": "memory"}}, 6),
    ],
)
def test_a_run_that_was_ended_goes_on_bit_for_bit(make: Make, sections: dict[str, Any], crash: int) -> None:
    whole, _ = train(make("whole", **{name: dict(section) for name, section in sections.items()}))
    config = make(**{name: dict(section) for name, section in sections.items()})
    with pytest.raises(KeyboardInterrupt):
        train(config, observer=CrashAfter(crash))
    run, screen = train(config, resume=True)
    every = config["train"]["save_every"]
    if (crash - 1) // every:
        assert f"going on after step {(crash - 1) // every * every} of " in screen
    assert_same_run(run, whole)
    assert (store.checkpoint_path(run, steps(run)[-1]) / "vocab.safetensors").exists() == ("draft" not in sections)


def test_validation_scores_survive_a_resume(make: Make, conversations_file: Path) -> None:
    sections = {
        "train": {"save_every": 2, "keep_last": 1, "lr": 3.0, "schedule": "constant", "max_grad_norm": None},
        "data": {"validation": [str(conversations_file)]},
    }
    whole, _ = train(make("whole", **{name: dict(section) for name, section in sections.items()}))
    config = make(**sections)
    with pytest.raises(KeyboardInterrupt):
        train(config, observer=CrashAfter(9))
    run, _ = train(config, resume=True)
    assert_same_run(run, whole)
    assert steps(run) == steps(whole)


def test_a_run_resumed_twice_and_from_an_interrupt_is_the_same(make: Make) -> None:
    class Interrupt:
        @hookimpl
        def specdec_step_finished(self, step: int) -> None:
            if step in (3, 7):
                os.kill(os.getpid(), signal.SIGINT)

    whole, _ = train(make("whole"))
    config = make()
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            train(config, resume=resume, observer=Interrupt())
    run, _ = train(config, resume=True)
    assert_same_run(run, whole)


def test_a_damaged_checkpoint_is_passed_over(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    whole, _ = train(make("whole"))
    config = make()
    with pytest.raises(KeyboardInterrupt):
        train(config, observer=CrashAfter(10))
    run = Path(config["train"]["output_dir"])
    damaged = store.checkpoint_path(run, 8)
    (damaged / "optimizer.safetensors").unlink()
    _, screen = train(config, resume=True)
    assert "going on after step 4 of 12" in screen
    assert f"{damaged} is not a complete checkpoint (no optimizer.safetensors)" in caplog.text
    assert_same_run(run, whole)


def test_a_half_written_line_of_metrics_is_cut(make: Make) -> None:
    whole, _ = train(make("whole"))
    config = make()
    with pytest.raises(KeyboardInterrupt):
        train(config, observer=CrashAfter(6))
    with (Path(config["train"]["output_dir"]) / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    run, _ = train(config, resume=True)
    assert_same_run(run, whole)


def test_a_complete_run_says_so(make: Make) -> None:
    run, _ = train(make())
    before = (run / "metrics.jsonl").stat().st_mtime_ns
    _, screen = train(make(), resume=True)
    assert f"{run}: this run is complete at step 12; its draft is in {run / 'draft'}" in screen
    assert (run / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_complete_run_without_its_draft_exports_it(make: Make) -> None:
    run, _ = train(make())
    before = (run / "draft" / "model.safetensors").read_bytes()
    (run / "draft").rename(run / "moved")
    train(make(), resume=True)
    assert (run / "draft" / "model.safetensors").read_bytes() == before


def test_resuming_what_never_began_begins_it(make: Make) -> None:
    run, _ = train(make(), resume=True)
    whole, _ = train(make("whole"))
    assert_same_run(run, whole)


def test_a_run_that_would_learn_otherwise_is_refused(make: Make) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(make(), observer=CrashAfter(6))
    with pytest.raises(UserErrors) as caught:
        train(make(train={"lr": 0.5, "seed": 3}, draft={"vocab_size": 32}, algorithm={"dropout": 0.2}), resume=True)
    run = make()["train"]["output_dir"]
    assert sorted(caught.value.messages[:-1]) == [
        f"{run}: algorithm.dropout was 0.1 when the run began and is now 0.2",
        f"{run}: draft.vocab_size was 64 when the run began and is now 32",
        f"{run}: train.lr was 0.01 when the run began and is now 0.5",
        f"{run}: train.seed was 0 when the run began and is now 3",
    ]
    assert f"restore these keys (see {run}/config.toml)" in caught.value.messages[-1]


def test_what_is_only_shown_or_kept_may_change(make: Make, conversations_file: Path) -> None:
    whole, _ = train(make("whole"))
    with pytest.raises(KeyboardInterrupt):
        train(make(), observer=CrashAfter(6))
    free = {"log_every": 2, "save_every": 3, "keep_last": 5, "run_name": "renamed", "validate_every": 4}
    data = {"validation": [str(conversations_file)], "num_proc": 1}
    run, _ = train(make(train=free, data=data, eval={"num_draft_tokens": 2}), resume=True)
    assert all(torch.equal(weights(run)[name], tensor) for name, tensor in weights(whole).items())
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4, 6, 8, 10, 12]


def test_data_that_changed_is_refused(make: Make, conversations_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(conversations_file.read_bytes())
    config = make(data={"train": [str(copy)]})
    with pytest.raises(KeyboardInterrupt):
        train(config, observer=CrashAfter(6))
    copy.write_text("".join(copy.read_text().splitlines(keepends=True)[:30]))
    with pytest.raises(UserError, match="the training data is not what this run began with"):
        train(config, resume=True)


@pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_as_if_it_had_not_been(make: Make, toy_path: Path, times: int) -> None:
    """SIGKILL to the real command, again and again, until it gets through."""
    # The toy's pause is not part of what it learns.
    algorithm = {"name": "toy", "seconds": 0.02}
    pace = {"save_every": 1, "max_steps": 30, "keep_last": 2}
    whole, _ = train(make("whole", train=dict(pace)))
    config = make(algorithm=algorithm, train=dict(pace))
    run = Path(config["train"]["output_dir"])
    rng, kills = random.Random(), 0
    while True:
        process = command(config, [toy_path], "--resume")
        reached = steps(run)[-1] if steps(run) else 0
        goal = min(reached + rng.randint(0, 6), 30)
        while process.poll() is None and (kills == times or steps(run)[-1:] < [goal]):
            time.sleep(0.005)
        if kills < times:
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
            kills += 1
        _, screen = process.communicate(timeout=60)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, screen
    assert kills == times
    assert_same_run(run, whole)
