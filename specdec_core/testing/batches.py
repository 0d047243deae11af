"""Documents, and batches made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specdec_core.capture.features import Features
from specdec_core.data.batch import PADDING_DOCUMENT, Batch


@dataclass(frozen=True)
class Document:
    """One conversation of n tokens: ids [n], learned [n] bool, and the target's features [1, n, ...].

    positions  [A, n] on the target's axes; None: those of text
    """

    ids: Tensor
    learned: Tensor
    features: Features
    positions: Tensor | None = None

    def __len__(self) -> int:
        return self.ids.numel()

    def first(self, count: int) -> Document:
        """Its first tokens."""
        positions = None if self.positions is None else self.positions[:, :count]
        return Document(self.ids[:count], self.learned[:count], self.features.select(slice(0, count)), positions)


def random_ids(count: int, vocab_size: int, seed: int) -> list[int]:
    """Token ids from 3 on, below which the special tokens lie."""
    return torch.randint(3, vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def batch_of(rows: Sequence[Sequence[Sequence[int]]], padding: int = 0) -> Batch:
    """Rows of documents of ids, every token learned; rows end in padding up to the longest and `padding` slots more."""
    slots = max(sum(map(len, row)) for row in rows) + padding
    ids, positions, documents = [], [], []
    for index, row in enumerate(rows):
        missing = slots - sum(map(len, row))
        ids.append([token for document in row for token in document] + random_ids(missing, 100, index))
        positions.append([slot for document in row for slot in range(len(document))] + [0] * missing)
        numbers = [number for number, document in enumerate(row) for _ in document]
        documents.append(numbers + [PADDING_DOCUMENT] * missing)
    document_ids = torch.tensor(documents, dtype=torch.int64)
    return Batch(
        torch.tensor(ids, dtype=torch.int64),
        torch.tensor(positions, dtype=torch.int64),
        document_ids != PADDING_DOCUMENT,
        document_ids,
    )


def pack(rows: Sequence[Sequence[Document]], padding: int = 0) -> tuple[Batch, Features]:
    """The batch of `batch_of` with its documents' loss masks and positions, and features that are noise at the padding.

    Either all documents or none have positions of their own.
    """
    batch = batch_of([[document.ids.tolist() for document in row] for row in rows], padding)
    filled = batch.document_ids != PADDING_DOCUMENT
    documents = [document for row in rows for document in row]
    several = [document.positions for document in documents if document.positions is not None]
    if several:
        positions = torch.zeros(len(several[0]), *batch.ids.shape, dtype=torch.int64)
        positions[:, filled] = torch.cat(several, dim=1)
        batch = replace(batch, positions=positions)
    batch.loss_mask[filled] = torch.cat([document.learned for document in documents])
    fields = zip(*(document.features.tensors() for document in documents), strict=True)
    joined = iter([_filled(torch.cat(list(parts), dim=1)[0], filled) for parts in fields])
    return batch, documents[0].features.map(lambda _: next(joined))


def _filled(values: Tensor, where: Tensor) -> Tensor:
    """values [n, ...] at the n places of `where` [B, S], noise elsewhere -> [B, S, ...]."""
    shape = (*where.shape, *values.shape[1:])
    generator = torch.Generator().manual_seed(where.numel())
    if values.is_floating_point():
        result = 3 * torch.randn(shape, generator=generator).to(values.dtype)
    else:
        result = torch.randint(0, 100, shape, generator=generator, dtype=values.dtype)
    result[where] = values
    return result


def tree_paths(parents: Sequence[int]) -> list[list[int]]:
    """For each token of a tree, the indices that lead to it; `parents[i]` is that before token i, -1 the root."""
    paths: list[list[int]] = []
    for index, parent in enumerate(parents):
        assert -1 <= parent < index, f"token {index} of a tree has parent {parent}; a parent comes before its children"
        paths.append([*(paths[parent] if parent >= 0 else []), index])
    return paths
