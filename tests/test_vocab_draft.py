"""A draft with a vocabulary of its own, against the plain map."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from specdec_core.algorithm.vocabulary import VocabDraft
from specdec_core.data.vocab import VocabMap
from specdec_core.errors import UserError
from specdec_core.testing.target import TinyTarget

TARGET = TinyTarget()
SIZE = TARGET.facts.vocab_size


class HeadOnly(VocabDraft):
    def backbone(self, embeds: Tensor, hidden: Tensor, attention: Any, positions: Tensor, cache: Any = None) -> Tensor:
        return hidden


def made(vocab: VocabMap | None, size: int | None = None) -> HeadOnly:
    rows = SIZE if vocab is None else vocab.ids.numel()
    return HeadOnly({"vocab_size": SIZE, "draft_vocab_size": size or rows}, TARGET, vocab)


maps = st.sets(st.integers(0, SIZE - 1), min_size=1, max_size=20).map(
    lambda ids: VocabMap(torch.tensor(sorted(ids)), SIZE)
)


@given(maps, st.lists(st.integers(1, 3), max_size=2))
def test_rows_and_distributions_are_of_the_targets_tokens(vocab: VocabMap, shape: list[int]) -> None:
    draft, ids = made(vocab), vocab.ids.tolist()
    rows = torch.randint(len(ids), shape)
    assert draft.target_ids(rows).flatten().tolist() == [ids[row] for row in rows.flatten().tolist()]
    probs = torch.rand(*shape, len(ids))
    full = draft.over_target_vocabulary(probs)
    assert full.shape == (*shape, SIZE)
    for found, given_probs in zip(full.view(-1, SIZE).tolist(), probs.view(-1, len(ids)).tolist(), strict=True):
        assert {token: p for token, p in enumerate(found) if p} == {
            t: p for t, p in zip(ids, given_probs, strict=True) if p
        }


@given(maps)
def test_an_exported_vocabulary_is_the_map(vocab: VocabMap) -> None:
    tensors = made(vocab).vocabulary_tensors()
    assert (torch.arange(len(vocab.ids)) + tensors["d2t"]).tolist() == vocab.ids.tolist()
    assert tensors["t2d"].nonzero().flatten().tolist() == vocab.ids.tolist()
    assert tensors["t2d"].shape == (SIZE,)


def test_the_whole_vocabulary_needs_no_map() -> None:
    draft = made(None)
    rows, probs = torch.tensor([3, 5]), torch.rand(2, SIZE)
    assert torch.equal(draft.target_ids(rows), rows)
    assert torch.equal(draft.over_target_vocabulary(probs), probs)
    assert draft.vocabulary_tensors() == {}


def test_the_vocabulary_is_not_saved_with_the_weights() -> None:
    vocab = VocabMap(torch.tensor([2, 7]), SIZE)
    assert not made(vocab).state_dict()
    assert made(vocab).draft_ids is not vocab.ids


@pytest.mark.parametrize(("vocab", "tokens"), [(None, SIZE), (VocabMap(torch.tensor([2, 7]), SIZE), 2)])
def test_a_vocabulary_of_another_size_is_refused(vocab: VocabMap | None, tokens: int) -> None:
    with pytest.raises(UserError, match=f"config has draft_vocab_size 5, the vocabulary map {tokens} tokens"):
        made(vocab, 5)
