"""A feature cache that lives as long as the process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from specdec_core.capture.config import MemoryCacheConfig
from specdec_core.capture.features import Features
from specdec_core.capture.source import FeatureCache, check_fingerprint


class MemoryCache(FeatureCache):
    """Rows are kept until `max_gb` is reached and none is dropped for a later one.

    Epochs read all rows in turn: dropping the oldest would leave none to be found.
    """

    def __init__(self, options: MemoryCacheConfig) -> None:
        super().__init__(options)
        self._dtype: torch.dtype | None = getattr(torch, options.dtype) if options.dtype else None
        self._room = int(options.max_gb * 1e9)
        self._rows: dict[str, Features] = {}
        self._fingerprint: Mapping[str, Any] | None = None

    def open(self, fingerprint: Mapping[str, Any]) -> None:
        """Serve features of this fingerprint. Raises UserError if others are held."""
        if self._fingerprint is not None:
            check_fingerprint("the cache in memory", self._fingerprint, fingerprint)
        self._fingerprint = dict(fingerprint)

    def get(self, key: str) -> Features | None:
        """The row's features, or None."""
        return self._rows.get(key)

    def put(self, key: str, features: Features) -> None:
        """Keep a copy of the row's features on the CPU if there is room."""
        if key in self._rows:
            return
        kept = features.map(lambda x: x.to("cpu", self._dtype if x.is_floating_point() else None, copy=True))
        size = sum(tensor.numel() * tensor.element_size() for tensor in kept.tensors())
        if size <= self._room:
            self._room -= size
            self._rows[key] = kept
