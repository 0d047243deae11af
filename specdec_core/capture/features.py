"""What an algorithm asks of the target, and what it gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class CapturePlan:
    """Which tensors of the target a step reads.

    Layer id k is the input of decoder layer k, which is the output of layer k-1 (HF `hidden_states[k]`);
    0 is the embedding and L, the number of layers, the last layer's output before the final norm.
    """

    layers: tuple[int, ...] = ()
    last_hidden: bool = False
    embeds: bool = False
    argmax: bool = False


@dataclass(frozen=True)
class Features:
    """The captured tensors of B rows of S slots, detached unless the algorithm trains the target.

    hidden       layer id -> [B, S, H], before the final norm
    last_hidden  [B, S, H], after the final norm: what the target's head reads
    embeds       [B, S, H] input embeddings, images merged in
    argmax       [B, S] int64, the target's most likely next token at each slot
    """

    hidden: dict[int, Tensor] = field(default_factory=dict)
    last_hidden: Tensor | None = None
    embeds: Tensor | None = None
    argmax: Tensor | None = None

    def stacked(self) -> Tensor:
        """[B, S, k*H]: the planned layers side by side, in ascending layer id."""
        return torch.cat([self.hidden[layer] for layer in sorted(self.hidden)], dim=-1)

    def select(self, slots: slice | Tensor) -> Features:
        """The same features at some slots: a range, or indices [m]."""
        return self.map(lambda x: x[:, slots])

    def map(self, change: Callable[[Tensor], Tensor]) -> Features:
        """The same features, each tensor changed."""
        return Features(
            {layer: change(value) for layer, value in self.hidden.items()},
            *(None if x is None else change(x) for x in (self.last_hidden, self.embeds, self.argmax)),
        )

    def tensors(self) -> list[Tensor]:
        """Every tensor that is there."""
        return [*self.hidden.values(), *(x for x in (self.last_hidden, self.embeds, self.argmax) if x is not None)]
