"""The interface of a draft model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from specdec_core.target.base import Target


class Draft(nn.Module, ABC):
    """A draft model. Only `backbone` is abstract; the rest defaults to the target's own parts.

    The target is held as a plain object, so that its weights are neither parameters nor saved.
    """

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target

    def embed_input_ids(self, ids: Tensor) -> Tensor:
        """[B, S] -> [B, S, H]. Default: the target's embedding."""
        return self.target.embed(ids)

    def project_hidden_states(self, hidden: Tensor) -> Tensor:
        """[B, S, k*H] -> [B, S, H]. Default: the identity."""
        return hidden

    @abstractmethod
    def backbone(self, embeds: Tensor, hidden: Tensor, attention: Any, positions: Tensor, cache: Any = None) -> Tensor:
        """[B, S, H] states from which `compute_logits` reads. `attention` is a plan, never a dense mask;
        `positions` is [B, S] or, on A axes, [A, B, S] (see `specdec_core.nn.rotary`)."""

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """[B, S, H] -> [B, S, V'] or [heads, B, S, V']. Default: the target's head."""
        return self.target.logits(hidden)
