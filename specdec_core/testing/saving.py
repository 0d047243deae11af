"""What an algorithm promises of checkpoints and of exported drafts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from specdec_core.algorithm.base import ExportedDraft
from specdec_core.algorithm.draft import Draft
from specdec_core.checkpoint import store
from specdec_core.checkpoint.weights import load_weights, read_saved_draft, vocab_of, vocab_tensors
from specdec_core.export.base import Provenance
from specdec_core.export.hf import HFExporter
from specdec_core.testing.batches import pack
from specdec_core.testing.bench import TrainedBench
from specdec_core.testing.compare import assert_all_same
from specdec_core.testing.promises import promise
from specdec_core.testing.step import OnTheBench


class SavingContract(OnTheBench):
    """Through files: what is kept in memory only is lost."""

    @promise("checkpoints")
    def test_training_goes_on_from_a_checkpoint(self, tmp_path: Path) -> None:
        """The step after loading, and the weights that it leaves, are the same to the last bit."""
        bench, other = self.trained(), self.trained()
        window = bench.window(bench.documents())
        engine = bench.engine(bench.draft())
        for _ in range(2):
            engine.train_step(window)
        path = store.save(
            tmp_path,
            store.Checkpoint(
                step=2,
                draft=engine.draft_state(),
                target=engine.target_state(),
                draft_config=bench.config,
                engine=engine.state(),
                rng_tensors={},
                rng_values={},
                vocab=vocab_tensors(bench.vocab),
                trainer={},
                best_step=None,
                config={},
                lock={},
            ),
        )
        saved = store.load(path)
        again = other.algorithm.build_draft(saved.draft_config, other.target, vocab_of(saved.vocab))
        load_weights(again, saved.draft, "the checkpoint")
        resumed = other.engine(again)
        resumed.load_state(saved.draft, saved.target, saved.engine)
        losses = []
        for each in (engine, resumed):
            torch.manual_seed(1)
            losses.append(float(each.train_step(window).metrics["loss"].sum))
        assert losses[0] == losses[1], (
            f"the next loss is {losses[0]:.6g} without the checkpoint, {losses[1]:.6g} from it"
        )
        assert_all_same(resumed.draft_state(), engine.draft_state(), "after the next step, the draft's")
        assert_all_same(resumed.target_state(), engine.target_state(), "after the next step, the target's")

    @promise("export")
    def test_an_exported_draft_loads_into_a_fresh_one(self, tmp_path: Path) -> None:
        """Written by the exporter `hf` and read as `draft.init_from` reads it; then the step is the same."""
        bench = self.trained()
        draft, (batch, features) = bench.draft(seed=1), pack([bench.documents()])
        HFExporter(None).write(_exported(bench, draft), tmp_path / "draft", Provenance({}, {}, 1))
        saved = read_saved_draft(tmp_path / "draft", bench.facts.vocab_size)
        fresh = bench.draft(seed=2)
        try:
            saved.load_into(fresh, bench.algorithm)
        except NotImplementedError:
            pytest.skip(f"algorithm {self.name} has no load_exported")
        expected, found = (bench.step(each, batch, features) for each in (draft, fresh))
        assert found.loss == expected.loss, f"the loss is {found.loss:.6g} after export, {expected.loss:.6g} before"
        assert_all_same(found.gradients, expected.gradients, "after export and loading, the gradient of")

    @promise("export")
    def test_every_trained_tensor_is_exported_and_no_other(self) -> None:
        """Two drafts of different weights are exported. A floating-point tensor that is the same in both was not
        trained; a parameter that can be changed without any exported tensor's changing was dropped."""
        bench = self.trained()
        draft, other = bench.draft(seed=1), bench.draft(seed=2)
        first, second = (_exported(bench, each).tensors for each in (draft, other))
        assert first.keys() == second.keys(), f"two drafts are exported under the names {[*first]} and {[*second]}"
        for name, tensor in first.items():
            same = tensor.is_floating_point() and torch.equal(tensor, second[name])
            assert not same, f"exported tensor {name} does not depend on the draft's weights"
        for name, parameter in draft.named_parameters():
            with torch.no_grad():
                parameter.add_(1)
            now = _exported(bench, draft).tensors
            changed = any(not torch.equal(now[key], tensor) for key, tensor in first.items())
            assert changed, f"parameter {name} is not exported: whatever its values, the exported tensors are the same"
            with torch.no_grad():
                parameter.sub_(1)
            first = _exported(bench, draft).tensors

    @promise("export")
    def test_the_vocabulary_map_is_exported(self) -> None:
        """`d2t[i]` is the target id of draft id i, less i; `t2d` says which target ids the draft has."""
        bench = self.trained()
        tensors = _exported(bench, bench.draft()).tensors
        if bench.vocab is None:
            strange = {"d2t", "t2d"} & tensors.keys()
            assert not strange, f"the draft has the target's vocabulary, and exports {', '.join(sorted(strange))}"
            return
        assert "d2t" in tensors, "the draft has a vocabulary of its own, and exports no d2t"
        for name, expected in (("d2t", bench.vocab.d2t), ("t2d", bench.vocab.t2d)):
            if name in tensors:
                assert torch.equal(tensors[name], expected), f"{name} is not that of the draft vocabulary"


def _exported(bench: TrainedBench, draft: Draft) -> ExportedDraft:
    """With copies of the tensors."""
    exported = bench.algorithm.export(draft, bench.facts)
    tensors: dict[str, Tensor] = {name: tensor.clone() for name, tensor in exported.tensors.items()}
    return ExportedDraft(exported.config, tensors)
