"""Rows to batches: shuffled by epoch, shared out among ranks, resumable anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from specdec_core.data.batch import PADDING_DOCUMENT, Batch, concatenated
from specdec_core.data.packing import Row, Rows
from specdec_core.errors import UserError


class BatchLoader:
    """Iterating yields what is left of the current epoch, then the next iteration is the next epoch.

    Every row is in one batch of one rank per epoch. All ranks have the same number of batches; the last batch may be
    smaller, and a rank for which no row is left gets a row of another rank with nothing supervised in it.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
    ) -> None:
        """`batch_size` counts the rows of one rank's batch. Without `shuffle` rows come in their own order."""
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.epoch = 0
        self._done = 0

    def __len__(self) -> int:
        """Batches per epoch and rank."""
        return -(-len(self.rows) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[Batch]:
        order, size = self._order(), self.batch_size * self.world_size
        waiting = [order[start : start + size] for start in range(self._done, len(order), size)]
        batches: Iterator[Batch] = map(self._batch, waiting)
        if self.rows.media is not None:
            batches = _ahead(batches)
        for taken, batch in zip(waiting, batches, strict=True):
            # The position moves on before the batch is handed out: a state saved after using it does not repeat it.
            self._done += len(taken)
            yield batch
        self.epoch += 1
        self._done = 0

    def rewound(self) -> BatchLoader:
        """Another loader of the same batches, before the first of them."""
        return BatchLoader(
            self.rows,
            self.batch_size,
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
            shuffle=self.shuffle,
        )

    def state(self) -> dict[str, Any]:
        """The position after the batch handed out last, JSON-able; the same on every rank."""
        return {
            "epoch": self.epoch,
            "rows_done": self._done,
            "seed": self.seed,
            "data": self.rows.fingerprint,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, on any number of ranks. Raises UserError if data or seed are not those of the state."""
        if state["data"] != self.rows.fingerprint:
            raise UserError(
                "the training data is not what this run began with (files, chat template, tokenizer, data.max_length, "
                "data.max_tokens or data.packing); restore it, or start a new run in another train.output_dir"
            )
        if state["seed"] != self.seed:
            raise UserError(f"train.seed is {self.seed}, but this run began with {state['seed']}; set it back")
        self.epoch = state["epoch"]
        self._done = state["rows_done"]

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(len(self.rows)))
        digest = hashlib.sha256(f"{self.seed}/{self.epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]))
        order: list[int] = torch.randperm(len(self.rows), generator=generator).tolist()
        return order

    def _batch(self, taken: Sequence[int]) -> Batch:
        mine = taken[self.rank :: self.world_size]
        if mine:
            return collate([self.rows[index] for index in mine])
        spare = self.rows[taken[0]]
        return collate([replace(spare, loss_mask=torch.zeros_like(spare.loss_mask))])


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same, the next batch being made in a thread while one is in use: reading images takes its time."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        following = pool.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = pool.submit(next, batches, None)
            yield batch


def collate(rows: Sequence[Row]) -> Batch:
    """Rows padded at the right to the longest of them."""

    def padded(tensors: Sequence[Tensor], value: float = 0) -> Tensor:
        return pad_sequence(list(tensors), batch_first=True, padding_value=value)

    # [A, n] is padded along n, and A comes first again.
    positions = padded([row.positions.movedim(-1, 0) for row in rows])
    return Batch(
        ids=padded([row.ids for row in rows]),
        positions=positions if positions.ndim == 2 else positions.movedim(-1, 0),
        loss_mask=padded([row.loss_mask for row in rows]),
        document_ids=padded([row.document_ids for row in rows], PADDING_DOCUMENT),
        row_keys=tuple(row.key for row in rows),
        extras=concatenated(row.extras for row in rows),
    )
