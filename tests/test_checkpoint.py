from __future__ import annotations

import errno
import hashlib
import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from specdec_core.checkpoint import store
from specdec_core.checkpoint.atomic import atomic_directory, is_disk_full, write_text
from specdec_core.checkpoint.rng import rng_state, seed_everything, set_rng_state
from specdec_core.checkpoint.store import Checkpoint
from specdec_core.checkpoint.weights import read_saved_draft, vocab_of, vocab_tensors
from specdec_core.data.vocab import VocabMap
from specdec_core.engine.base import EngineState
from specdec_core.errors import UserError


def checkpoint(step: int = 100, size: int = 16, best_step: int | None = None) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    draft = {"fc.weight": torch.randn(size, 4, generator=generator), "scalar": torch.tensor(0.1)}
    return Checkpoint(
        step=step,
        draft=draft,
        draft_config={"hidden_size": 4, "rope": {"theta": 1e4}},
        engine=EngineState({"fc.weight.exp_avg": draft["fc.weight"] * 2}, {"steps_done": step}),
        rng_tensors={"torch": torch.get_rng_state()},
        rng_values={"python": [3, None]},
        vocab=vocab_tensors(VocabMap(torch.tensor([1, 5, 9]), 11)),
        trainer={"loop": {"loss": 0.1 + 0.2}},
        best_step=best_step,
        config={"target": {"path": "x", "revision": None}},
        lock={"plugins": []},
    )


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


@pytest.mark.parametrize("whole_vocabulary", [False, True])
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, whole_vocabulary: bool) -> None:
    saved = replace(checkpoint(), vocab={}) if whole_vocabulary else checkpoint(best_step=50)
    path = store.save(tmp_path, saved)
    assert path == tmp_path / "checkpoints" / "step-00000100"
    loaded = store.load(path)
    for name in saved.__dataclass_fields__:
        mine, theirs = getattr(saved, name), getattr(loaded, name)
        if isinstance(mine, EngineState):
            mine, theirs = vars(mine), vars(theirs)
        assert same(mine, theirs), name
    vocab = vocab_of(loaded.vocab)
    assert (vocab is None) if whole_vocabulary else (vocab is not None and vocab.ids.tolist() == [1, 5, 9])


def test_a_checkpoint_holds_tensors_and_json_only(tmp_path: Path) -> None:
    path = store.save(tmp_path, checkpoint())
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}
    files = json.loads((path / "manifest.json").read_text())["files"]
    assert files.keys() == {file.name for file in path.iterdir()} - {"manifest.json"}
    for name, facts in files.items():
        content = (path / name).read_bytes()
        assert facts == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_the_newest_complete_checkpoint_is_found(tmp_path: Path) -> None:
    assert store.latest(tmp_path) is None
    for step in (9, 10, 200):
        store.save(tmp_path, checkpoint(step))
    assert store.latest(tmp_path) == store.checkpoint_path(tmp_path, 200)


def cut(path: Path) -> None:
    os.truncate(path / "optimizer.safetensors", 100)


def lose(path: Path) -> None:
    (path / "draft.safetensors").unlink()


def unfinished(path: Path) -> None:
    (path / "manifest.json").unlink()


def scrawled(path: Path) -> None:
    (path / "manifest.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "flaw"),
    [
        (cut, r"optimizer\.safetensors has 100 bytes of \d+"),
        (lose, r"no draft\.safetensors"),
        (unfinished, r"no manifest\.json"),
        (scrawled, r"manifest\.json is not readable"),
    ],
)
def test_an_incomplete_checkpoint_is_named_and_passed_over(tmp_path: Path, damage: Any, flaw: str) -> None:
    good, bad = (store.save(tmp_path, checkpoint(step)) for step in (10, 20))
    damage(bad)
    warnings: list[str] = []
    assert store.latest(tmp_path, warn=warnings.append) == good
    assert len(warnings) == 1
    assert str(bad) in warnings[0]
    with pytest.raises(UserError, match=flaw):
        store.load(bad)


def test_a_checkpoint_that_was_altered_is_refused(tmp_path: Path) -> None:
    path = store.save(tmp_path, checkpoint())
    with (path / "draft.safetensors").open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"\x7f")
    with pytest.raises(UserError, match=r"draft\.safetensors is not what was saved: its sha256"):
        store.load(path)


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    path = store.save(tmp_path, checkpoint())
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(UserError, match=r"checkpoint format 99, but this version of specdec reads 1"):
        store.load(path)


def test_saving_over_a_damaged_checkpoint_replaces_it(tmp_path: Path) -> None:
    cut(store.save(tmp_path, checkpoint(10)))
    path = store.save(tmp_path, checkpoint(10))
    assert store.load(path).step == 10
    assert hidden(tmp_path / "checkpoints") == []


def hidden(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_while_saving_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    before = store.save(tmp_path, checkpoint(10))

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(store, "_fingerprint", fail)
    with pytest.raises(failure):
        store.save(tmp_path, checkpoint(20))
    monkeypatch.undo()
    assert store.latest(tmp_path) == before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [before.name]


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in range(1, 7):
        store.save(tmp_path, checkpoint(step, best_step=2))
    (tmp_path / "checkpoints" / ".step-00000009.tmp").mkdir()
    store.prune(tmp_path, keep_last=2, best_step=2)
    assert sorted(path.name[-1] for path in (tmp_path / "checkpoints").iterdir()) == ["2", "5", "6"]
    assert store.best(tmp_path) == store.checkpoint_path(tmp_path, 2)
    store.prune(tmp_path, keep_last=1, best_step=None)
    assert store.latest(tmp_path) == store.checkpoint_path(tmp_path, 6)
    assert store.best(tmp_path) is None


@pytest.mark.parametrize("full_at", ["tensors", "json"])
def test_a_full_disk_is_one_sentence_and_loses_nothing(small_disk: Path, full_at: str) -> None:
    before = store.save(small_disk, checkpoint(10))
    size = 100_000
    if full_at == "json":
        # The four tensor files take five pages; two are left for the JSON files.
        size, free = 16, os.statvfs(small_disk)
        (small_disk / "filler").write_bytes(b"0" * ((free.f_bavail - 7) * free.f_bsize))
    with pytest.raises(UserError) as caught:
        store.save(small_disk, checkpoint(20, size=size))
    assert isinstance(caught.value.__cause__, OSError if full_at == "json" else SafetensorError)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"no space left on the disk of {small_disk}: the checkpoint of step 20 was not written; ")
    assert f"the last complete checkpoint is {before}; free " in message
    assert message.endswith("MB and run the same command with --resume")
    assert store.load(before).step == 10
    assert hidden(small_disk / "checkpoints") == []
    assert store.latest(small_disk) == before


def test_a_full_disk_is_told_from_other_errors() -> None:
    assert is_disk_full(OSError(errno.ENOSPC, "No space left on device"))
    assert is_disk_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert not is_disk_full(PermissionError(errno.EACCES, "no"))
    assert not is_disk_full(ValueError("No space left on device (os error 28)"))


def test_a_directory_appears_whole(tmp_path: Path) -> None:
    final = tmp_path / "draft"
    for content in ("old", "new"):
        with atomic_directory(final) as directory:
            (directory / "file").write_text(content)
            assert not final.exists() or (final / "file").read_text() == "old"
        assert (final / "file").read_text() == content
    assert os.listdir(tmp_path) == ["draft"]


def test_a_file_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "file", "old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def draws() -> tuple[float, ...]:
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.rand(()))


def test_every_generator_goes_on_where_it_stood(tmp_path: Path) -> None:
    seed_everything(-3)
    draws()
    tensors, values = rng_state("cpu")
    path = store.save(tmp_path, replace(checkpoint(), rng_tensors=tensors, rng_values=values))
    expected = [draws() for _ in range(3)]
    seed_everything(1)
    loaded = store.load(path)
    set_rng_state(loaded.rng_tensors, loaded.rng_values, "cpu")
    assert [draws() for _ in range(3)] == expected


def test_a_seed_decides_every_generator() -> None:
    seed_everything(7)
    expected = draws()
    seed_everything(7)
    assert draws() == expected


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"runs/none does not exist; give a run directory"):
        read_saved_draft(tmp_path / "runs/none", 11)
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        read_saved_draft(tmp_path, 11)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; give a run directory"):
        read_saved_draft(tmp_path / "file", 11)
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(UserError, match=r"^draft.init_from: .*model.safetensors cannot be read"):
        read_saved_draft(tmp_path, 11)
