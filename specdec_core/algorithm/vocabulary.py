"""A draft that may say a part of the target's vocabulary only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from specdec_core.algorithm.draft import Draft
from specdec_core.data.vocab import VocabMap
from specdec_core.errors import UserError
from specdec_core.target.base import Target


class VocabDraft(Draft):
    """A draft whose head has a row for each of D tokens of the target's V.

    config     HF-style, with `vocab_size` V and `draft_vocab_size` D
    draft_ids  [D] int64 the target id that each row stands for, ascending; None where D is V. Not saved with the
               weights: checkpoints hold the vocabulary beside them
    """

    draft_ids: Tensor | None

    def __init__(self, config: Mapping[str, Any], target: Target, vocab: VocabMap | None) -> None:
        """`vocab` is None for the target's whole vocabulary. Raises UserError if it is not of the config's size."""
        super().__init__(target)
        size, expected = (config["vocab_size"] if vocab is None else vocab.ids.numel()), config["draft_vocab_size"]
        if size != expected:
            raise UserError(f"the draft's config has draft_vocab_size {expected}, the vocabulary map {size} tokens")
        self.config = dict(config)
        self.register_buffer("draft_ids", None if vocab is None else vocab.ids.clone(), persistent=False)

    def target_ids(self, rows: Tensor) -> Tensor:
        """Rows of the head [...] int64 -> the target ids that they stand for."""
        return rows if self.draft_ids is None else self.draft_ids[rows]

    def over_target_vocabulary(self, probs: Tensor) -> Tensor:
        """[..., D] -> [..., V], 0 for what the draft cannot say: a `Proposal`'s `probs`."""
        if self.draft_ids is None:
            return probs
        full = probs.new_zeros(*probs.shape[:-1], self.config["vocab_size"])
        return full.index_copy_(-1, self.draft_ids, probs)

    def vocabulary_tensors(self) -> dict[str, Tensor]:
        """An exported draft's `d2t` [D] int64, offsets, and `t2d` [V] bool; nothing where it can say all V tokens."""
        if self.draft_ids is None:
            return {}
        vocab = VocabMap(self.draft_ids.cpu(), self.config["vocab_size"])
        return {"d2t": vocab.d2t, "t2d": vocab.t2d}
