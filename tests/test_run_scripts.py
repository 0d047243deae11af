"""The scripts that start runs on big targets: they start what they say, and refuse what cannot work."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest
from example_packages import ROOT
from published_targets import TARGETS, draft_shapes

from specdec_core.registry.registry import Registry
from specdec_core.registry.resolve import resolve_file

SCRIPTS = sorted(path for path in (ROOT / "configs" / "run").glob("*.sh") if path.name != "launch.sh")
ALGORITHMS = ("eagle3", "medusa")
MANY = 10**6
"""MiB of a GPU that holds anything."""

each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A directory with a `specdec` that prints its arguments and a `nvidia-smi` that tells $MIB."""
    for name, line in (("specdec", 'echo "$@"'), ("nvidia-smi", 'echo "$MIB"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def start(script: Path, programs: Path | str, *overrides: str, **variables: object) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "MIB": str(MANY)}
    environment |= {name: str(value) for name, value in variables.items()}
    return subprocess.run([script, *overrides], env=environment, capture_output=True, text=True, cwd="/")


def test_every_big_target_has_a_script() -> None:
    assert {script.stem for script in SCRIPTS} == {of.name for of in TARGETS if of.parameters > 5e9}


@each_script
@each_algorithm
def test_a_dry_run_finds_the_config_valid(script: Path, algorithm: str) -> None:
    result = start(script, sysconfig.get_path("scripts"), ALGORITHM=algorithm, DRY_RUN=1, NUM_GPUS=8, TP_SIZE=4)
    assert result.returncode == 0, result.stderr
    assert f"configs/{script.stem}_{algorithm}.toml: valid." in result.stdout


@each_script
def test_it_starts_what_it_says(script: Path, programs: Path) -> None:
    result = start(script, programs, "train.lr=3e-4", ALGORITHM="medusa", BATCH_SIZE=4, GLOBAL_BATCH=32)
    assert result.stdout.split() == [
        *("train", f"configs/{script.stem}_medusa.toml", "engine.device=cuda"),
        *("train.batch_size=4", "train.accumulation=8", "train.lr=3e-4", "--resume"),
    ]
    assert start(script, programs).stdout.startswith(f"train configs/{script.stem}_eagle3.toml")


@each_script
@each_algorithm
def test_a_gpu_that_is_too_small_is_refused(script: Path, algorithm: str, programs: Path) -> None:
    """The figure covers the target's weights in bfloat16 and 20 bytes for each of the draft's: itself in bfloat16 and
    float32, gradients in both, and two moments."""
    small = start(script, programs, ALGORITHM=algorithm, MIB=16384)
    found = re.fullmatch(r"error: configs/\w+\.toml takes about (\d+) GB on one GPU, which has 17; .+\n", small.stderr)
    assert small.returncode == 2
    assert found, small.stderr
    of = next(of for of in TARGETS if of.name == script.stem)
    run = resolve_file(ROOT / "configs" / f"{script.stem}_{algorithm}.toml", [], Registry.discover()).config
    state = (2 * of.parameters + 20 * sum(map(math.prod, draft_shapes(of, run).values()))) / 1e9
    assert state + 8 <= int(found[1]) <= state + 32
    fits_an_a100 = start(script, programs, ALGORITHM=algorithm, MIB=81920).returncode == 0
    assert fits_an_a100 == (script.stem != "qwen2_5_vl_32b")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"NUM_GPUS": 8}, "NUM_GPUS=8: this version trains in one process on one GPU; set it to 1"),
        ({"NUM_GPUS": 8, "TP_SIZE": 3}, "NUM_GPUS=8 is no multiple of TP_SIZE=3"),
        ({"BATCH_SIZE": 5}, "GLOBAL_BATCH=16 is no multiple of the 5 rows that NUM_GPUS=1 read in a forward"),
        ({"ALGORITHM": "eagle4"}, "ALGORITHM=eagle4: there is no configs/qwen3_8b_eagle4.toml"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(variables: dict[str, object], message: str, programs: Path) -> None:
    result = start(ROOT / "configs" / "run" / "qwen3_8b.sh", programs, **variables)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"error: {message}\n")


def test_a_machine_without_a_gpu_is_refused(programs: Path) -> None:
    (programs / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    result = start(ROOT / "configs" / "run" / "qwen3_8b.sh", programs)
    assert (result.returncode, result.stderr) == (2, "error: nvidia-smi finds no GPU\n")


def test_the_rows_of_a_step_are_shared_out(programs: Path) -> None:
    script = ROOT / "configs" / "run" / "qwen3_8b.sh"
    result = start(script, programs, DRY_RUN=1, NUM_GPUS=8, TP_SIZE=2, BATCH_SIZE=2, GLOBAL_BATCH=32)
    assert result.stdout.split()[-2:] == ["train.batch_size=2", "train.accumulation=4"]
