from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_runs import lines, toy_config, train

from specdec_core.errors import UserError

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def make(tiny_target_dir: Path, conversations_file: Path, tmp_path: Path, toy: None) -> Make:
    """Configs of runs `tmp_path/run`."""

    def config(**sections: Any) -> dict[str, Any]:
        return toy_config(tiny_target_dir, conversations_file, tmp_path / "run", **sections)

    return config


def scalars(directory: Path, name: str) -> dict[int, float]:
    """What TensorBoard shows of one metric, by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(directory))
    accumulator.Reload()
    return {event.step: event.value for event in accumulator.Scalars(name)}


needs_tensorboard = pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="tensorboard is missing")
needs_wandb = pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="wandb is missing")


@needs_tensorboard
def test_tensorboard_shows_what_metrics_jsonl_holds(make: Make) -> None:
    run, _ = train(make(loggers=[{"name": "tensorboard"}]))
    for name in ("loss", "accuracy/1", "lr"):
        expected = {line["step"]: pytest.approx(line[name]) for line in lines(run)}
        assert scalars(run / "tensorboard", name) == expected


@needs_tensorboard
def test_tensorboard_shows_each_step_of_a_resumed_run_once(make: Make, tmp_path: Path) -> None:
    from test_resume import CrashAfter

    config = make(loggers=[{"name": "tensorboard", "directory": str(tmp_path / "elsewhere")}])
    with pytest.raises(KeyboardInterrupt):
        train(config, observer=CrashAfter(6))
    run, _ = train(config, resume=True)
    shown = scalars(tmp_path / "elsewhere", "loss")
    assert shown == {line["step"]: pytest.approx(line["loss"]) for line in lines(run)}


@needs_wandb
def test_wandb_offline_keeps_the_run_in_its_directory(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    seen: dict[str, Any] = {}
    begin = wandb.init

    def spy(**arguments: Any) -> Any:
        seen["run"] = begin(**arguments)
        log = seen["run"].log
        seen["steps"] = []

        def record(metrics: dict[str, float], step: int) -> None:
            seen["steps"].append(step)
            log(metrics, step=step)

        monkeypatch.setattr(seen["run"], "log", record)
        return seen["run"]

    monkeypatch.setattr(wandb, "init", spy)
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = {"name": "wandb", "mode": "offline", "project": "drafts", "run_name": "first try"}
    with caplog.at_level(logging.WARNING, logger="specdec_core"):
        run, _ = train(make(loggers=[logger]))
    assert not [record for record in caplog.records if record.name.startswith("specdec_core")]
    assert (seen["run"].name, seen["run"].project) == ("first try", "drafts")
    assert seen["run"].config["train"]["max_steps"] == 12
    assert seen["steps"] == list(range(1, 13))
    assert list((run / "wandb").glob("offline-run-*/run-*.wandb"))


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_without_its_package_says_what_to_install(
    make: Make, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf'run `pip install "specdec-core\[{name}\]"`'):
        train(make(loggers=[{"name": name}]))
