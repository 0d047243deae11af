"""One checkpoint is one directory, `RUN/checkpoints/step-00000100`, with a manifest of its files.

draft.safetensors        the draft's weights, float32 (masters where it trains in bfloat16)
draft_config.json        the draft's HF-style config
target.safetensors       the target's trained weights, float32, if it is trained; a tied weight once
optimizer.safetensors    AdamW's moments
rng.safetensors          states of the random generators
vocab.safetensors        the draft vocabulary, if there is one
state.json               step, data position, metrics in progress, best score, the rest of the above
config.json              the run config
plugins.lock.json        the plugins that the run uses
manifest.json            size and sha256 of every other file; written last
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from specdec_core.checkpoint.atomic import atomic_directory, is_disk_full, remove_directory, remove_leftovers
from specdec_core.engine.base import EngineState
from specdec_core.errors import UserError

FORMAT = 1
CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
TARGET = "target.safetensors"
PREFIX = "step-"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on, in memory.

    `vocab` holds the tensors of the draft vocabulary, {} for the target's whole vocabulary; `target` the target's
    trained weights, {} if it is frozen.
    `trainer` is the training loop's own state; it, `config` and `lock` are JSON-able.
    """

    step: int
    draft: dict[str, Tensor]
    draft_config: dict[str, Any]
    engine: EngineState
    rng_tensors: dict[str, Tensor]
    rng_values: dict[str, Any]
    vocab: dict[str, Tensor]
    trainer: dict[str, Any]
    best_step: int | None
    config: dict[str, Any]
    lock: dict[str, Any]
    target: dict[str, Tensor] = field(default_factory=dict)

    @property
    def tensor_files(self) -> dict[str, dict[str, Tensor]]:
        """The tensors by file name."""
        files = {
            "draft.safetensors": self.draft,
            "optimizer.safetensors": self.engine.tensors,
            "rng.safetensors": self.rng_tensors,
        }
        optional = {"vocab.safetensors": self.vocab, TARGET: self.target}
        return files | {name: tensors for name, tensors in optional.items() if tensors}

    @property
    def json_files(self) -> dict[str, Any]:
        """The rest by file name."""
        return {
            "draft_config.json": self.draft_config,
            "config.json": self.config,
            "plugins.lock.json": self.lock,
            "state.json": {
                "format": FORMAT,
                "step": self.step,
                "engine": self.engine.values,
                "rng": self.rng_values,
                "trainer": self.trainer,
                "best_step": self.best_step,
            },
        }


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step stands."""
    return run_dir / CHECKPOINTS / f"{PREFIX}{step:08d}"


def save(run_dir: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint, complete or not at all. Raises UserError if the disk is full."""
    path = checkpoint_path(run_dir, checkpoint.step)
    try:
        with atomic_directory(path) as directory:
            for name, tensors in checkpoint.tensor_files.items():
                save_file(tensors, directory / name)
            for name, value in checkpoint.json_files.items():
                (directory / name).write_text(_json(value), encoding="utf-8")
            files = {file.name: _fingerprint(file) for file in sorted(directory.iterdir())}
            (directory / MANIFEST).write_text(_json({"format": FORMAT, "files": files}), encoding="utf-8")
    except Exception as error:
        if is_disk_full(error):
            raise _disk_full(run_dir, checkpoint) from error
        raise
    return path


def load(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises UserError, naming the file, if one is missing or not what was written."""
    _verify(path)
    state, config, lock, draft_config = (
        json.loads((path / name).read_text(encoding="utf-8"))
        for name in ("state.json", "config.json", "plugins.lock.json", "draft_config.json")
    )
    vocab, target = path / "vocab.safetensors", path / TARGET
    return Checkpoint(
        step=state["step"],
        draft=load_file(path / "draft.safetensors"),
        draft_config=draft_config,
        engine=EngineState(load_file(path / "optimizer.safetensors"), state["engine"]),
        rng_tensors=load_file(path / "rng.safetensors"),
        rng_values=state["rng"],
        vocab=load_file(vocab) if vocab.exists() else {},
        trainer=state["trainer"],
        best_step=state["best_step"],
        config=config,
        lock=lock,
        target=load_file(target) if target.exists() else {},
    )


def latest(run_dir: Path, warn: Callable[[str], object] = log.warning) -> Path | None:
    """The newest complete checkpoint of a run; incomplete ones are named in a warning and passed over."""
    for path in reversed(_all(run_dir)):
        flaw = _flaw(path)
        if flaw is None:
            return path
        warn(f"{path} is not a complete checkpoint ({flaw}); it is passed over")
    return None


def best(run_dir: Path) -> Path | None:
    """The checkpoint with the best score, as the newest one recorded it; None if none was scored."""
    newest = latest(run_dir)
    if newest is None:
        return None
    step = json.loads((newest / "state.json").read_text(encoding="utf-8"))["best_step"]
    path = None if step is None else checkpoint_path(run_dir, step)
    return path if path and _flaw(path) is None else None


def prune(run_dir: Path, keep_last: int, best_step: int | None) -> None:
    """Remove all checkpoints but the newest `keep_last` and the best, and what killed processes left."""
    best_path = None if best_step is None else checkpoint_path(run_dir, best_step)
    for path in _all(run_dir)[:-keep_last]:
        if path != best_path:
            remove_directory(path)
    remove_leftovers(run_dir / CHECKPOINTS)


def _all(run_dir: Path) -> list[Path]:
    return sorted(path for path in (run_dir / CHECKPOINTS).glob(f"{PREFIX}*") if path.is_dir())


def _flaw(path: Path) -> str | None:
    """What a look at names and sizes finds wrong."""
    try:
        files = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"no {MANIFEST}"
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is not readable"
    for name, facts in files.items():
        file = path / name
        if not file.is_file():
            return f"no {name}"
        if file.stat().st_size != facts["size"]:
            return f"{name} has {file.stat().st_size} bytes of {facts['size']}"
    return None


def _verify(path: Path) -> None:
    flaw = _flaw(path)
    if flaw is not None:
        raise UserError(f"{path} is not a complete checkpoint: {flaw}; use another one")
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    if manifest["format"] != FORMAT:
        raise UserError(
            f"{path / MANIFEST}: checkpoint format {manifest['format']}, but this version of specdec reads {FORMAT}; "
            "use the version named in its plugins.lock.json"
        )
    for name, facts in manifest["files"].items():
        if _fingerprint(path / name) != facts:
            raise UserError(
                f"{path / name} is not what was saved: its sha256 is not the one in {MANIFEST}; "
                f"remove {path} to go on from the checkpoint before it"
            )


def _fingerprint(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"size": file.stat().st_size, "sha256": digest}


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1) + "\n"


def _disk_full(run_dir: Path, checkpoint: Checkpoint) -> UserError:
    needed = sum(t.numel() * t.element_size() for tensors in checkpoint.tensor_files.values() for t in tensors.values())
    missing = needed + 2**20 - shutil.disk_usage(run_dir).free
    last = latest(run_dir)
    stands = f"the last complete checkpoint is {last}" if last else "there is no earlier one"
    return UserError(
        f"no space left on the disk of {run_dir}: the checkpoint of step {checkpoint.step} was not written; {stands}; "
        f"free {max(missing, 2**20) / 1e6:.0f} MB and run the same command with --resume"
    )
