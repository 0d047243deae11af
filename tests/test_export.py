from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from specdec_core.algorithm.base import ExportedDraft
from specdec_core.errors import UserError
from specdec_core.export.base import Provenance
from specdec_core.export.hf import HFExporter, compare, read_exported

RUN = Provenance({"target": {"path": "x"}}, {"plugins": []}, 42)


def draft(value: float = 1.0) -> ExportedDraft:
    tensors = {
        "fc.weight": torch.randn(4, 6).t(),
        "norm.weight": torch.full((4,), value, dtype=torch.bfloat16),
        "d2t": torch.arange(3),
        "t2d": torch.tensor([True, False]),
    }
    return ExportedDraft({"architectures": ["X"], "layers": (1, 2), "rope": {"theta": 1e4}}, tensors)


def test_what_is_written_is_a_hugging_face_directory_with_its_provenance(tmp_path: Path) -> None:
    exported, out = draft(), tmp_path / "a" / "draft"
    HFExporter(None).write(exported, out, RUN)
    assert sorted(os.listdir(out)) == ["config.json", "model.safetensors", "specdec.json"]
    assert json.loads((out / "config.json").read_text()) == {
        "architectures": ["X"],
        "layers": [1, 2],
        "rope": {"theta": 1e4},
    }
    assert json.loads((out / "specdec.json").read_text()) == {
        "config": {"target": {"path": "x"}},
        "lock": {"plugins": []},
        "step": 42,
        "trained_target": False,
    }
    tensors = load_file(out / "model.safetensors")
    assert tensors.keys() == exported.tensors.keys()
    for name, tensor in exported.tensors.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert read_exported(out).config["layers"] == [1, 2]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "draft"
    with pytest.raises(UserError, match=rf"^{out} cannot be written \(.*\); choose another directory$"):
        HFExporter(None).write(draft(), out, RUN)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tensors_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(UserError, match=r"not exported: norm\.weight holds values that are not finite"):
        HFExporter(None).write(draft(value), tmp_path / "draft", RUN)
    assert os.listdir(tmp_path) == []


def test_an_older_export_is_replaced_and_a_strangers_directory_is_not(tmp_path: Path) -> None:
    out = tmp_path / "draft"
    HFExporter(None).write(draft(), out, RUN)
    HFExporter(None).write(draft(2.0), out, RUN)
    assert float(read_exported(out).tensors["norm.weight"][0]) == 2.0

    photos = tmp_path / "photos"
    photos.mkdir()
    HFExporter(None).write(draft(), photos, RUN)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for taken in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(UserError, match=r"exists and is not a draft exported by specdec"):
            HFExporter(None).write(draft(), taken, RUN)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_draft_that_does_not_read_back_is_noticed(tmp_path: Path) -> None:
    exported, out = draft(), tmp_path / "draft"
    HFExporter(None).write(exported, out, RUN)
    good = load_file(out / "model.safetensors")
    for tensors, flaw in (
        ({**good, "fc.weight": good["fc.weight"] + 1e-3}, "fc.weight does not read back"),
        ({**good, "d2t": good["d2t"].int()}, "d2t does not read back"),
        ({name: good[name] for name in ("d2t", "t2d")}, "other names"),
    ):
        save_file(tensors, out / "model.safetensors")
        with pytest.raises(RuntimeError, match=flaw):
            compare(exported, out)
    save_file(good, out / "model.safetensors")
    compare(exported, out)
    (out / "config.json").write_text("{}")
    with pytest.raises(RuntimeError, match=r"config\.json does not read back"):
        compare(exported, out)
    (out / "config.json").unlink()
    with pytest.raises(UserError, match=r"is not an exported draft: it has no config\.json"):
        read_exported(out)


def test_tied_tensors_are_both_written(tmp_path: Path) -> None:
    weight = torch.randn(4, 3)
    exported = ExportedDraft({}, {"embed": weight, "head": weight})
    HFExporter(None).write(exported, tmp_path / "draft", RUN)
    tensors = read_exported(tmp_path / "draft").tensors
    assert torch.equal(tensors["embed"], weight)
    assert torch.equal(tensors["head"], weight)
