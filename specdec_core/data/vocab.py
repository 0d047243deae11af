"""The draft vocabulary: which of the target's tokens a draft can propose."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from specdec_core.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class VocabMap:
    """A draft vocabulary of D of the target's V tokens.

    ids   [D] int64  target ids, strictly ascending; row i of the draft's head stands for token ids[i]
    size  V
    """

    ids: Tensor
    size: int

    def __post_init__(self) -> None:
        in_range = self.ids.numel() and int(self.ids[0]) >= 0 and int(self.ids[-1]) < self.size
        if not in_range or not bool((self.ids[1:] > self.ids[:-1]).all()):
            raise UserError(
                f"draft vocabulary must be strictly ascending target ids in 0..{self.size - 1}; "
                "rebuild it for this target"
            )

    @property
    def d2t(self) -> Tensor:
        """[D] int64 offsets: target id of draft id i is i + d2t[i]."""
        return self.ids - torch.arange(self.ids.numel(), device=self.ids.device)

    @property
    def t2d(self) -> Tensor:
        """[V] bool: whether a target id is in the draft vocabulary."""
        mask = torch.zeros(self.size, dtype=torch.bool, device=self.ids.device)
        mask[self.ids] = True
        return mask

    @classmethod
    def from_counts(cls, counts: Tensor, size: int, always: Iterable[int] = ()) -> VocabMap:
        """Keep `always` (stop tokens) and the most frequent of `counts` [V], `size` tokens in all.

        Ties, and tokens never seen, are taken in ascending id: for byte-pair vocabularies that is the order
        of the merges, so that the fill is made of the more frequent tokens of the tokenizer's own corpus.
        """
        vocab = counts.numel()
        if not 1 <= size <= vocab:
            raise UserError(f"draft.vocab_size is {size}; the target's vocabulary allows 1 to {vocab}")
        keep = sorted(set(always))
        if keep and not 0 <= keep[0] <= keep[-1] < vocab:
            raise UserError(f"stop token {keep[-1]} lies outside the target's vocabulary of {vocab}")
        if len(keep) > size:
            raise UserError(f"draft.vocab_size is {size}; the {len(keep)} stop tokens alone need more")
        rank = counts.to(torch.int64).clone()
        rank[torch.tensor(keep, dtype=torch.int64)] = torch.iinfo(torch.int64).max
        chosen = torch.sort(rank, descending=True, stable=True).indices[:size]
        return cls(ids=chosen.sort().values, size=vocab)

    def coverage(self, counts: Tensor) -> float:
        """Share of the tokens counted in `counts` [V] that the draft vocabulary holds; 1 if none was counted."""
        total = int(counts.sum())
        return int(counts[self.ids].sum()) / total if total else 1.0

    def save(self, path: Path) -> None:
        """Write `d2t` and `t2d` as safetensors."""
        save_file({"d2t": self.d2t, "t2d": self.t2d}, path)

    @classmethod
    def load(cls, path: Path) -> VocabMap:
        """The inverse of `save`. Raises UserError if there is no such file or its two tensors disagree."""
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be read as a draft vocabulary: {error}") from error
        if set(tensors) != {"d2t", "t2d"}:
            raise UserError(f"{path}: must hold the tensors d2t and t2d, found {', '.join(sorted(tensors)) or 'none'}")
        vocab = cls(ids=tensors["t2d"].nonzero().squeeze(1), size=tensors["t2d"].numel())
        if not torch.equal(vocab.d2t, tensors["d2t"]):
            raise UserError(f"{path}: d2t and t2d name different tokens; build the draft vocabulary anew")
        return vocab


def count_supervised(dataset: Dataset, vocab_size: int) -> Tensor:
    """[V] int64: how often each of the target's tokens is supervised in `dataset` (`PreparedData.rows.dataset`).

    Raises UserError if a token lies outside the target's vocabulary.
    """
    from specdec_core.data.dataset import supervised_ids

    counts = torch.zeros(vocab_size, dtype=torch.int64)
    for ids in supervised_ids(dataset):
        if ids.size and ids.max() >= vocab_size:
            raise UserError(
                f"the data holds token {ids.max()}, but the target's vocabulary has {vocab_size}; "
                "the tokenizer is not this target's"
            )
        counts += torch.bincount(torch.from_numpy(ids), minlength=vocab_size)
    return counts
