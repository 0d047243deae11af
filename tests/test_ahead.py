"""Looking ahead in packed rows, against loops."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from specdec_core.data.batch import PADDING_DOCUMENT, Batch, ahead

rows = st.lists(st.integers(1, 4), max_size=4).map(
    lambda sizes: [d for d, size in enumerate(sizes) for _ in range(size)]
)


@given(rows, st.integers(0, 3), st.integers(0, 18))
def test_slots_of_one_document_are_those_that_carry_its_number_and_padding_is_none(
    documents: list[int], padding: int, distance: int
) -> None:
    ids = torch.tensor([[*documents, *[PADDING_DOCUMENT] * padding]], dtype=torch.int64)
    batch = Batch(ids, ids, ids >= 0, ids)
    expected = [
        t + distance < len(documents) and documents[t] == documents[t + distance] for t in range(len(documents))
    ]
    assert batch.same_document(distance).tolist() == [[*expected, *[False] * padding]]


@given(st.integers(1, 6), st.integers(0, 8))
def test_what_lies_ahead_is_filled_past_the_end(length: int, distance: int) -> None:
    x = torch.arange(2 * length * 3).view(2, length, 3)
    found = ahead(x, distance, -1)
    for t in range(length):
        expected = x[:, t + distance] if t + distance < length else torch.full((2, 3), -1)
        assert torch.equal(found[:, t], expected)
