"""How a draft proposes: the protocol between a drafter and the decoding loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from specdec_core.capture.features import Features


@dataclass(frozen=True)
class Proposal:
    """Draft tokens for the target to verify in one forward, all in target ids.

    tokens   [n] int64
    parents  [n] int64, index in `tokens` of the token before, -1 for the last emitted token; None is a chain. A parent
             comes before its children, and siblings hold different tokens. It is read on the host: keep it on the CPU
    probs    [n, V] the distribution each token was drawn from; None says that the proposal is deterministic. A tree
             is verified above temperature 0 only without
    """

    tokens: Tensor
    parents: Tensor | None = None
    probs: Tensor | None = None


@dataclass(frozen=True)
class Verified:
    """Slots that the target has read and accepted, and the token it then emitted.

    ids       [m + 1] int64: the tokens at the m slots, then the one emitted after the last of them,
              so that slot i of `features` is followed by token ids[i + 1]
    features  of the m slots, [1, m, ...]
    start     index of the first slot in the sequence
    rotary    [m] or [A, m] the target's rotary positions of the slots, on each of its A axes; None: as `start` counts.
              What is drafted after the last of them goes on by one a token, on every axis
    """

    ids: Tensor
    features: Features
    start: int
    rotary: Tensor | None = None

    @property
    def positions(self) -> Tensor:
        """[m] or [A, m] rotary positions of the slots."""
        if self.rotary is not None:
            return self.rotary
        return torch.arange(self.start, self.start + self.ids.numel() - 1, device=self.ids.device)


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. `generator` is the only source of randomness."""

    temperature: float = 0.0
    generator: Generator | None = None


class Drafter(ABC):
    """Proposes for one sequence: `begin(prompt)`, then `propose` and `accept` in turn."""

    @abstractmethod
    def begin(self, verified: Verified) -> None:
        """Read the prompt's slots and the first token that the target emitted."""

    @abstractmethod
    def propose(self, num_tokens: int, sampling: Sampling) -> Proposal:
        """A chain of up to `num_tokens` tokens to follow the last emitted one, or a tree of that depth; may be none.

        What is deeper is cut off. How many nodes a tree holds is the drafter's affair.
        """

    @abstractmethod
    def accept(self, verified: Verified) -> None:
        """Drop every key made from guesses and read the accepted slots with the target's features."""
