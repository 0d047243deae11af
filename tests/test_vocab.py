"""The draft vocabulary: counting, choosing, keeping."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from specdec_core.data.vocab import VocabMap, count_supervised
from specdec_core.errors import UserError

COUNTS = st.lists(st.integers(0, 5), min_size=1, max_size=60).map(torch.tensor)


@given(COUNTS, st.data())
def test_from_counts(counts: Tensor, data: st.DataObject) -> None:
    vocab = counts.numel()
    size = data.draw(st.integers(1, vocab))
    always = data.draw(st.sets(st.integers(0, vocab - 1), max_size=size))
    chosen = VocabMap.from_counts(counts, size, always)
    ids = chosen.ids.tolist()
    assert len(ids) == size
    assert ids == sorted(set(ids))
    assert set(always) <= set(ids)
    free = [token for token in ids if token not in always]
    left = [token for token in range(vocab) if token not in ids]
    # Every token kept beats every token left out: by count, then by the smaller id.
    assert all((-counts[kept], kept) < (-counts[other], other) for kept in free for other in left)


@given(COUNTS, st.data())
def test_maps_are_inverse(counts: Tensor, data: st.DataObject) -> None:
    chosen = VocabMap.from_counts(counts, data.draw(st.integers(1, counts.numel())))
    draft_ids = torch.arange(chosen.ids.numel())
    target_ids = draft_ids + chosen.d2t
    assert torch.equal(target_ids, chosen.ids)
    assert chosen.t2d.shape == counts.shape
    assert torch.equal(chosen.t2d.nonzero().squeeze(1), target_ids)
    assert torch.equal((chosen.t2d.cumsum(0) - 1)[target_ids], draft_ids)
    kept = sum(int(counts[token]) for token in chosen.ids)
    assert chosen.coverage(counts) == pytest.approx(kept / int(counts.sum()) if counts.sum() else 1.0)


@pytest.mark.parametrize(
    ("size", "always", "message"),
    [
        (0, [], r"draft\.vocab_size is 0; the target's vocabulary allows 1 to 5"),
        (6, [], r"draft\.vocab_size is 6; the target's vocabulary allows 1 to 5"),
        (1, [2, 3], r"draft\.vocab_size is 1; the 2 stop tokens alone need more"),
        (3, [5], "stop token 5 lies outside the target's vocabulary of 5"),
    ],
)
def test_what_cannot_be_is_refused(size: int, always: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        VocabMap.from_counts(torch.ones(5), size, always)


@pytest.mark.parametrize("ids", [[], [1, 1], [2, 1], [-1, 2], [1, 5]])
def test_ids_that_are_no_vocabulary_are_refused(ids: list[int]) -> None:
    with pytest.raises(UserError, match=r"strictly ascending target ids in 0\.\.4"):
        VocabMap(torch.tensor(ids, dtype=torch.int64), 5)


def test_counting_counts_supervised_tokens_only() -> None:
    dataset = Dataset.from_dict(
        {"ids": [[1, 2, 2], [3], [2, 4]], "loss_mask": [[False, True, True], [True], [True, False]]}
    )
    assert count_supervised(dataset, 6).tolist() == [0, 0, 3, 1, 0, 0]
    assert count_supervised(dataset.select([1]), 6).tolist() == [0, 0, 0, 1, 0, 0]
    with pytest.raises(UserError, match="holds token 3, but the target's vocabulary has 3"):
        count_supervised(dataset, 3)


def test_saved_and_loaded(tmp_path: Path) -> None:
    vocab = VocabMap(torch.tensor([0, 3, 4, 9]), 12)
    vocab.save(tmp_path / "vocab.safetensors")
    loaded = VocabMap.load(tmp_path / "vocab.safetensors")
    assert (loaded.ids.tolist(), loaded.size) == ([0, 3, 4, 9], 12)


def test_files_that_are_no_vocabulary_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "vocab.safetensors"
    with pytest.raises(UserError, match=r"vocab\.safetensors: cannot be read as a draft vocabulary"):
        VocabMap.load(file)
    file.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot be read as a draft vocabulary"):
        VocabMap.load(file)
    save_file({"d2t": torch.zeros(2)}, file)
    with pytest.raises(UserError, match="must hold the tensors d2t and t2d, found d2t"):
        VocabMap.load(file)
    save_file({"d2t": torch.tensor([0, 1]), "t2d": torch.tensor([True, True, False])}, file)
    with pytest.raises(UserError, match="d2t and t2d name different tokens"):
        VocabMap.load(file)
