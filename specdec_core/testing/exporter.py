"""The contract of an exporter."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from specdec_core.algorithm.base import ExportedDraft
from specdec_core.errors import UserError
from specdec_core.export.base import Exporter, Provenance
from specdec_core.export.directory import PROVENANCE
from specdec_core.export.hf import read_exported
from specdec_core.testing.compare import assert_all_same
from specdec_core.testing.plugin import PluginContract
from specdec_core.testing.promises import promise

RUN = Provenance({"target": {"path": "x"}, "algorithm": {"name": "y"}}, {"plugins": []}, 42)


class ExporterContract(PluginContract):
    """Everything that an exporter promises, as tests for a subclass to inherit:

        class TestMine(ExporterContract):
            name = "my-format"

    Override `read` and `read_provenance` if it does not write what the exporter `hf` writes. See docs/contracts.md.
    """

    kind = "exporter"

    def read(self, out: Path) -> ExportedDraft:
        """The inverse of `write`. Default: config.json and model.safetensors."""
        return read_exported(out)

    def read_provenance(self, out: Path) -> dict[str, Any]:
        """What is written of the run. Default: specdec.json."""
        found: dict[str, Any] = json.loads((out / PROVENANCE).read_text(encoding="utf-8"))
        return found

    def draft(self, seed: int = 0) -> ExportedDraft:
        """A draft to write: tensors of several types, not contiguous, sharing memory, empty."""
        weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
        tensors = {
            "fc.weight": weight.t(),
            "embed.weight": weight,
            "norm.weight": weight[0].bfloat16(),
            "half.weight": weight[:, 1].half(),
            "d2t": torch.arange(3),
            "t2d": torch.tensor([True, False]),
            "scale": torch.tensor(0.5),
        }
        config = {"architectures": ["X"], "layers": [1, 2], "rope": {"theta": 1e4}, "name": "ü", "missing": None}
        return ExportedDraft(config, tensors)

    @promise("written-whole")
    def test_what_is_written_reads_back(self, tmp_path: Path) -> None:
        """Names, types, shapes and values; and the config. Directories above are made."""
        written, out = self.draft(), tmp_path / "above" / "draft"
        exporter: Exporter = self.load()
        exporter.write(written, out, RUN)
        self._check(out, written)

    @promise("all-or-nothing")
    def test_an_older_draft_is_replaced(self, tmp_path: Path) -> None:
        """Nothing of it stays, and nothing else is left beside it."""
        exporter: Exporter = self.load()
        out, first = tmp_path / "draft", self.draft(1)
        exporter.write(replace(first, tensors={**first.tensors, "old.weight": torch.ones(2)}), out, RUN)
        second = self.draft(2)
        exporter.write(second, out, RUN)
        self._check(out, second)
        left = [path.name for path in tmp_path.iterdir()]
        assert left == ["draft"], f"beside the draft there are {left}"

    @promise("all-or-nothing")
    def test_a_strangers_files_are_left_alone(self, tmp_path: Path) -> None:
        """A directory that holds something else, and a file."""
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("years of work")
        exporter: Exporter = self.load()
        for taken in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt", tmp_path / "mine" / "thesis.txt" / "draft"):
            with pytest.raises(UserError) as caught:
                exporter.write(self.draft(), taken, RUN)
            assert str(taken) in str(caught.value), f"the refusal does not name {taken}: {caught.value}"
            kept = {path.name: path.read_text() for path in (tmp_path / "mine").iterdir()}
            assert kept == {"thesis.txt": "years of work"}, f"after a refused write the directory holds {kept}"

    @promise("all-or-nothing")
    def test_a_write_that_fails_leaves_what_stood_there(self, tmp_path: Path) -> None:
        """Nothing, or the older draft: with a tensor without values, and with a config that is not JSON."""
        exporter: Exporter = self.load()
        good = self.draft()
        hollow = {**good.tensors, "void.weight": torch.empty(3, device="meta")}
        broken = (replace(good, tensors=hollow), replace(good, config={**good.config, "what": object()}))
        for stands in (False, True):
            out = tmp_path / f"draft-{stands}"
            if stands:
                exporter.write(good, out, RUN)
            for draft in broken:
                self._write_badly(exporter, draft, out)
                if stands:
                    self._check(out, good)
                else:
                    assert not out.exists(), f"a failed write leaves {[path.name for path in out.iterdir()]}"
        left = [path.name for path in tmp_path.iterdir() if path.name != "draft-True"]
        assert not left, f"a failed write leaves {left}"

    @promise("all-or-nothing")
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_values_that_are_not_finite_are_refused(self, tmp_path: Path, value: float) -> None:
        """The refusal names the tensor."""
        good = self.draft()
        bad = replace(good, tensors={**good.tensors, "ill.weight": torch.tensor([1.0, value])})
        exporter: Exporter = self.load()
        with pytest.raises(UserError) as caught:
            exporter.write(bad, tmp_path / "draft", RUN)
        assert "ill.weight" in str(caught.value), f"the refusal does not name ill.weight: {caught.value}"
        assert not (tmp_path / "draft").exists(), "a refused draft was written"

    @promise("provenance")
    def test_the_run_is_written_beside_the_draft(self, tmp_path: Path) -> None:
        """Its config, its lock and the step of the weights."""
        exporter: Exporter = self.load()
        exporter.write(self.draft(), tmp_path / "draft", RUN)
        found, expected = self.read_provenance(tmp_path / "draft"), {**vars(RUN)}
        assert found == expected, f"beside the draft stands {found}, the run is {expected}"

    def _check(self, out: Path, written: ExportedDraft) -> None:
        found = self.read(out)
        assert_all_same(found.tensors, written.tensors, "read back, tensor")
        assert found.config == written.config, f"the config reads back as {found.config}"

    @staticmethod
    def _write_badly(exporter: Exporter, draft: ExportedDraft, out: Path) -> None:
        try:
            exporter.write(draft, out, RUN)
        except Exception:
            return
        raise AssertionError("a draft that cannot be written was written")
