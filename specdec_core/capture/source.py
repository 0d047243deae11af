"""Where a step's features come from: the target itself, or a cache of what it once computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from specdec_core.capture.features import CapturePlan, Features
from specdec_core.data.batch import PADDING_DOCUMENT, Batch
from specdec_core.errors import UserError
from specdec_core.target.base import Target


class FeatureCache(ABC):
    """Features by row key. Made with the plugin's validated options.

    A row's features are [1, n, ...] for its n slots that are not padding. What a key stands for depends on the
    fingerprint, so that `open` comes first.
    """

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def open(self, fingerprint: Mapping[str, Any]) -> None:
        """Serve features of this fingerprint. Raises UserError if others are held (see `check_fingerprint`)."""

    @abstractmethod
    def get(self, key: str) -> Features | None:
        """The row's features on any device and of any floating-point type, or None."""

    @abstractmethod
    def put(self, key: str, features: Features) -> None:
        """Keep the row's features, if there is room."""


def fingerprint_of(target: Target, plan: CapturePlan, revision: str | None = None) -> dict[str, Any]:
    """All that decides a row's features besides its tokens, JSON-able.

    The target (path or Hub id, revision, type and sizes), its floating-point type, a digest of its chat
    template, and what is captured.
    """
    facts = target.facts
    template = getattr(target.tokenizer, "chat_template", None) or ""
    return {
        "target": facts.name_or_path,
        "revision": revision,
        "model_type": facts.model_type,
        "shape": [facts.num_layers, facts.hidden_size, facts.vocab_size],
        "dtype": facts.dtype,
        "chat_template": sha256(str(template).encode()).hexdigest()[:16],
        **asdict(plan),
        "layers": sorted(plan.layers),
    }


def check_fingerprint(where: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise UserError, naming what differs, if `where` holds features of another fingerprint."""
    differing = [key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
    if differing:
        shown = "; ".join(f"{key} is {found.get(key)!r}, this run needs {wanted.get(key)!r}" for key in differing)
        raise UserError(f"{where} holds features that do not fit this run ({shown}); clear it or use another")


class FeatureSource:
    """Features of batches, for one target and one plan."""

    def __init__(
        self, target: Target, plan: CapturePlan, cache: FeatureCache | None = None, revision: str | None = None
    ) -> None:
        """`revision` is the target's, for the cache's fingerprint."""
        self.target, self.plan, self.cache = target, plan, cache
        if cache is not None:
            cache.open(fingerprint_of(target, plan, revision))

    def features(self, batch: Batch) -> Features:
        """What the plan names, for every slot of the batch; through a cache, 0 at padding.

        Only rows that the cache lacks are run through the target.
        """
        if self.cache is None:
            return self.target.capture(batch, self.plan)
        if len(batch.row_keys) != batch.ids.shape[0]:
            raise ValueError(f"{batch.ids.shape[0]} rows come with {len(batch.row_keys)} keys; a cache needs one each")
        lengths = (batch.document_ids != PADDING_DOCUMENT).sum(dim=1).tolist()
        rows = {row: found for row, key in enumerate(batch.row_keys) if (found := self.cache.get(key)) is not None}
        missing = [row for row in range(len(lengths)) if row not in rows]
        if missing:
            # What belongs to which row of `extras` is the model's affair, so that such a batch is not taken apart.
            chosen = list(range(len(lengths))) if batch.extras else missing
            captured = self.target.capture(_rows_of(batch, chosen), self.plan)
            for index, row in enumerate(chosen):
                live = _row(captured, index, lengths[row])
                self.cache.put(batch.row_keys[row], live)
                # Read back, so that the first epoch sees what the later ones will.
                rows[row] = self.cache.get(batch.row_keys[row]) or live
        return self._assemble([rows[row] for row in range(len(lengths))], batch)

    def _assemble(self, rows: Sequence[Features], batch: Batch) -> Features:
        """Rows [1, n, ...] side by side as [B, S, ...], on the batch's device and in the target's type."""
        dtype = getattr(torch, self.target.facts.dtype)

        def stack(*tensors: Tensor) -> Tensor:
            filled = [_pad(x, batch.ids.shape[1]) for x in tensors]
            return torch.cat(filled).to(batch.ids.device, dtype if filled[0].is_floating_point() else None)

        def field(name: str) -> Tensor | None:
            tensors = [getattr(row, name) for row in rows]
            return None if tensors[0] is None else stack(*tensors)

        return Features(
            hidden={layer: stack(*(row.hidden[layer] for row in rows)) for layer in rows[0].hidden},
            last_hidden=field("last_hidden"),
            embeds=field("embeds"),
            argmax=field("argmax"),
        )


def _row(features: Features, row: int, slots: int) -> Features:
    """[1, slots, ...] of one row."""
    return features.map(lambda x: x[row : row + 1, :slots])


def _pad(x: Tensor, slots: int) -> Tensor:
    """[1, n, ...] -> [1, slots, ...] with zeros at the end."""
    return F.pad(x, (0, 0) * (x.ndim - 2) + (0, slots - x.shape[1]))


def _rows_of(batch: Batch, rows: list[int]) -> Batch:
    """Some rows of a batch. `positions` may have an axis before the rows'."""
    return replace(
        batch,
        ids=batch.ids[rows],
        positions=batch.positions[..., rows, :],
        loss_mask=batch.loss_mask[rows],
        document_ids=batch.document_ids[rows],
        row_keys=tuple(batch.row_keys[row] for row in rows),
    )
