"""Packing sequences into rows, and rows into batches."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec_core.data.batch import PADDING_DOCUMENT, Batch
from specdec_core.data.loader import BatchLoader, collate
from specdec_core.data.packing import Rows, pack
from specdec_core.errors import UserError

MAX_LENGTH = 16
Sample = tuple[list[int], list[bool]]

SAMPLES = st.lists(
    st.integers(1, MAX_LENGTH).flatmap(
        lambda size: st.tuples(
            st.lists(st.integers(1, 60_000), min_size=size, max_size=size),
            st.lists(st.booleans(), min_size=size, max_size=size),
        )
    ),
    min_size=1,
    max_size=20,
)


def rows_of(samples: Sequence[Sample], packing: bool = True, fingerprint: str = "f") -> Rows:
    dataset = Dataset.from_dict({"ids": [ids for ids, _ in samples], "loss_mask": [mask for _, mask in samples]})
    documents = pack([len(ids) for ids, _ in samples], MAX_LENGTH) if packing else [(i,) for i in range(len(samples))]
    return Rows(dataset, documents, fingerprint)


def numbered(count: int) -> Rows:
    """Rows of one sequence each: row n holds the token n + 1, n % 4 + 1 times."""
    return rows_of([([n + 1] * (n % 4 + 1), [True] * (n % 4 + 1)) for n in range(count)], packing=False)


def documents(batches: Iterable[Batch]) -> list[Sample]:
    """What is in the batches, slot by slot; checks the shape of rows on the way."""
    found: list[Sample] = []
    for batch in batches:
        for row in range(len(batch.ids)):
            previous = -1
            for slot, document in enumerate(batch.document_ids[row].tolist()):
                position = int(batch.positions[row, slot])
                if document == PADDING_DOCUMENT:
                    assert not bool(batch.loss_mask[row, slot])
                    assert (batch.document_ids[row, slot:] == PADDING_DOCUMENT).all()
                    break
                if document != previous:
                    assert (document, position) == (previous + 1, 0)
                    found.append(([], []))
                assert position == len(found[-1][0])
                found[-1][0].append(int(batch.ids[row, slot]))
                found[-1][1].append(bool(batch.loss_mask[row, slot]))
                previous = document
    return found


@given(st.lists(st.integers(1, 64), max_size=200), st.integers(64, 100))
def test_every_sequence_is_in_one_row_that_holds_it(lengths: list[int], max_length: int) -> None:
    rows = pack(lengths, max_length)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    sizes = [sum(lengths[index] for index in row) for row in rows]
    assert all(size <= max_length for size in sizes)
    assert all(list(row) == sorted(row) and row for row in rows)
    # No two rows could be one, which bounds the waste: all rows but one are more than half full.
    assert len(sizes) < 2 or sum(sorted(sizes)[:2]) > max_length


def test_packing_is_tight_and_repeatable() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = (torch.randn(3000, generator=generator).mul(0.7).add(7).exp().clamp(8, 2048)).int().tolist()
    rows = pack(lengths, 2048)
    assert rows == pack(lengths, 2048)
    assert sum(lengths) / (len(rows) * 2048) > 0.99


@pytest.mark.parametrize("length", [0, 17])
def test_a_sequence_that_no_row_can_hold_is_a_bug(length: int) -> None:
    with pytest.raises(ValueError, match=f"sequence 1 has {length} tokens; a row holds 1 to 16"):
        pack([3, length], 16)


@given(SAMPLES, st.booleans(), st.integers(1, 3), st.integers(1, 3), st.booleans())
@settings(deadline=None, max_examples=50)
def test_every_token_is_in_one_batch_of_one_rank(
    samples: list[Sample], packing: bool, batch_size: int, world_size: int, shuffle: bool
) -> None:
    rows = rows_of(samples, packing)
    loaders = [
        BatchLoader(rows, batch_size, seed=3, rank=rank, world_size=world_size, shuffle=shuffle)
        for rank in range(world_size)
    ]
    working: list[Batch] = []
    for rank, loader in enumerate(loaders):
        batches = list(loader)
        assert len(batches) == len(loader) == len(loaders[0])
        for index, batch in enumerate(batches):
            if index * batch_size * world_size + rank < len(rows):
                working.append(batch)
            else:
                assert batch.num_tokens > 0
                assert not batch.loss_mask.any()
    assert sorted(documents(working)) == sorted(samples)
    assert sorted(key for batch in working for key in batch.row_keys) == sorted(row.key for row in rows)
    assert all(len(batch.ids) <= batch_size and batch.ids.shape[1] <= MAX_LENGTH for batch in working)
    assert all(bool((batch.document_ids != PADDING_DOCUMENT).any(0).all()) for batch in working)


def test_a_rank_for_which_no_row_is_left_gets_one_with_nothing_supervised() -> None:
    batches = [list(BatchLoader(numbered(5), 2, rank=rank, world_size=4)) for rank in range(4)]
    sizes = [[len(batch.ids) for batch in of_rank] for of_rank in batches]
    assert sizes == [[2], [1], [1], [1]]
    batches = [list(BatchLoader(numbered(5), 1, rank=rank, world_size=4)) for rank in range(4)]
    supervised = [[int(batch.loss_mask.sum()) > 0 for batch in of_rank] for of_rank in batches]
    assert supervised == [[True, True], [True, False], [True, False], [True, False]]
    assert all(batch.num_tokens > 0 for of_rank in batches for batch in of_rank)


def test_a_batch_is_padded_to_its_longest_row_only() -> None:
    rows = rows_of([([5, 6, 7], [False, True, True]), ([8], [True])], packing=False)
    batch = collate([rows[0], rows[1]])
    assert batch.ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert batch.loss_mask.tolist() == [[False, True, True], [True, False, False]]
    assert batch.document_ids.tolist() == [[0, 0, 0], [0, -1, -1]]
    assert [batch.ids.dtype, batch.positions.dtype, batch.loss_mask.dtype, batch.document_ids.dtype] == [
        torch.int64, torch.int64, torch.bool, torch.int64,
    ]  # fmt: skip
    assert batch.num_tokens == 4


def test_a_rows_key_follows_its_content() -> None:
    def key(*samples: Sample) -> str:
        return rows_of(samples)[0].key

    variants = [
        key(([1, 2], [True, True])),
        key(([1, 3], [True, True])),
        key(([1, 2], [True, False])),
        key(([1], [True]), ([2], [True])),
    ]
    assert len(set(variants)) == len(variants)
    other_place = rows_of([([9] * MAX_LENGTH, [True] * MAX_LENGTH), ([1, 2], [True, True])], fingerprint="g")
    assert other_place[1].key == variants[0]


def order(loader: BatchLoader) -> list[int]:
    return [int(token) for batch in loader for token in batch.ids[:, 0]]


def test_each_epoch_has_its_own_order_that_only_the_seed_decides() -> None:
    loader = BatchLoader(numbered(50), 4, seed=1)
    epochs = [order(loader) for _ in range(3)]
    again = BatchLoader(numbered(50), 4, seed=1)
    assert [order(again) for _ in range(3)] == epochs
    assert epochs[0] != epochs[1] != epochs[2]
    assert order(BatchLoader(numbered(50), 4, seed=2)) != epochs[0]
    assert order(BatchLoader(numbered(50), 4, seed=-1)) != epochs[0]
    assert order(BatchLoader(numbered(50), 4, shuffle=False)) == list(range(1, 51))


def take(loader: BatchLoader, count: int) -> list[Any]:
    """The next batches' first tokens, epoch after epoch."""
    batches = (batch for _ in iter(int, 1) for batch in loader)
    return [next(batches).ids[:, 0].tolist() for _ in range(count)]


@given(
    rows=st.integers(1, 12),
    batch_size=st.integers(1, 4),
    world_size=st.integers(1, 2),
    before=st.integers(0, 20),
    shuffle=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_a_loaded_state_goes_on_with_exactly_the_remaining_batches(
    rows: int, batch_size: int, world_size: int, before: int, shuffle: bool
) -> None:
    options: dict[str, Any] = {"seed": 5, "world_size": world_size, "rank": world_size - 1, "shuffle": shuffle}
    whole = take(BatchLoader(numbered(rows), batch_size, **options), before + 7)
    stopped = BatchLoader(numbered(rows), batch_size, **options)
    assert take(stopped, before) == whole[:before]
    resumed = BatchLoader(numbered(rows), batch_size, **options)
    resumed.load_state(json.loads(json.dumps(stopped.state())))
    assert take(resumed, 7) == whole[before:]


def test_a_state_can_be_loaded_on_another_number_of_ranks() -> None:
    two = [BatchLoader(numbered(12), 2, seed=1, rank=rank, world_size=2) for rank in range(2)]
    seen = [token for loader in two for batch in take(loader, 1) for token in batch]
    assert two[0].state() == two[1].state()
    one = BatchLoader(numbered(12), 3, seed=1)
    one.load_state(two[0].state())
    assert sorted(seen + order(one)) == list(range(1, 13))


def test_a_state_of_other_data_or_another_seed_is_refused() -> None:
    state = BatchLoader(numbered(3), 1).state()
    with pytest.raises(UserError, match="the training data is not what this run began with"):
        BatchLoader(rows_of([([1], [True])], fingerprint="g"), 1).load_state(state)
    with pytest.raises(UserError, match=r"train\.seed is 4, but this run began with 0; set it back"):
        BatchLoader(numbered(3), 1, seed=4).load_state(state)
