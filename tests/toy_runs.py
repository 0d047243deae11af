"""Runs of the toy algorithm on the tiny target, in this process and in others."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from specdec_core.checkpoint import store
from specdec_core.config.run import RunConfig
from specdec_core.config.show import to_toml
from specdec_core.registry.hooks import hookimpl
from specdec_core.registry.registry import Registry
from specdec_core.registry.resolve import ResolvedRun, resolve
from specdec_core.train.trainer import run_training

# What differs between two runs of one config.
CLOCK = ("tokens_per_second", "capture_seconds", "step_seconds")


def toy_config(target: Path, data: Path, output: Path, /, **sections: Any) -> dict[str, Any]:
    """A run of 12 steps that saves every 4; `sections` are merged over it."""
    config: dict[str, Any] = {
        "target": {"path": str(target)},
        "backbone": {"name": "causal-lm"},
        "algorithm": {"name": "toy"},
        "engine": {"name": "torch", "device": "cpu", "threads": 1},
        "draft": {"vocab_size": 64},
        "data": {"train": [str(data)], "max_length": 128, "cache_dir": str(output.parent / "tokens")},
        "train": {
            "output_dir": str(output),
            "lr": 1e-2,
            "accumulation": 2,
            "batch_size": 1,
            "epochs": 9,
            "max_steps": 12,
            "save_every": 4,
        },
    }
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section} if isinstance(section, dict) else section
    return config


def resolved(config: dict[str, Any]) -> tuple[ResolvedRun, Registry]:
    registry = Registry.discover()
    return resolve(RunConfig.model_validate(config), registry), registry


def train(config: dict[str, Any], resume: bool = False, observer: object = None) -> tuple[Path, str]:
    """Run in this process. Returns the run directory and what a person saw."""
    run, registry = resolved(config)
    if observer is not None:
        registry.register_observer(observer)
    screen = io.StringIO()
    return run_training(run, registry, resume, Console(file=screen, width=200)), screen.getvalue()


def command(config: dict[str, Any], path: list[Path], *arguments: str) -> subprocess.Popen[str]:
    """`specdec train CONFIG ARGUMENTS` in a process of its own, with `path` before Python's."""
    file = Path(config["train"]["output_dir"]).with_suffix(".toml")
    file.write_text(to_toml(config))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "OMP_NUM_THREADS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "specdec_core", "train", str(file), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(run: Path) -> list[dict[str, float]]:
    """metrics.jsonl, without what the clock says."""
    parsed = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in parsed]


def weights(run: Path) -> dict[str, Tensor]:
    """The exported draft."""
    return load_file(run / "draft" / "model.safetensors")


def steps(run: Path) -> list[int]:
    """The steps of the checkpoints that stand."""
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def assert_same_run(run: Path, whole: Path) -> None:
    """The same lines, weights, optimizer, generators and state, bit for bit."""
    assert lines(run) == lines(whole)
    mine, theirs = weights(run), weights(whole)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    ours, others = (store.checkpoint_path(place, steps(whole)[-1]) for place in (run, whole))
    assert {file.name for file in ours.iterdir()} == {file.name for file in others.iterdir()}
    for file in ours.glob("*.safetensors"):
        assert file.read_bytes() == (others / file.name).read_bytes(), file.name
    assert json.loads((ours / "state.json").read_text()) == json.loads((others / "state.json").read_text())


class CrashAfter:
    """Ends a run when a step's line is written, before its checkpoint is."""

    def __init__(self, step: int) -> None:
        self.step = step

    @hookimpl
    def specdec_step_finished(self, step: int) -> None:
        if step == self.step:
            raise KeyboardInterrupt  # Any other exception of an observer is logged and the run goes on.
