"""Prompt lookup: proposes what the text itself has said before."""

from __future__ import annotations

import torch

from specdec_core.algorithm.proposal import Drafter, Proposal, Sampling, Verified


class LookupDrafter(Drafter):
    """Proposes what followed the most recent earlier occurrence of the text's last n-gram, the longest n first.

    Prompt-lookup decoding (Saxena, 2023, github.com/apoorvumang/prompt-lookup-decoding). It reads no features and
    has no weights; its proposals are deterministic.
    """

    def __init__(self, longest: int, shortest: int) -> None:
        """n from `longest` down to `shortest`."""
        self.sizes = range(longest, shortest - 1, -1)
        self.text: list[int] = []
        self.device = torch.device("cpu")
        # Where the text goes on after the most recent occurrence of an n-gram, for those that something follows.
        self.after: dict[tuple[int, ...], int] = {}

    def begin(self, verified: Verified) -> None:
        """Read the prompt and the first token."""
        self.text.clear()
        self.after.clear()
        self.device = verified.ids.device
        self._read(verified.ids.tolist())

    def propose(self, num_tokens: int, sampling: Sampling) -> Proposal:
        """Up to `num_tokens` tokens; none if no ending of the text occurred before."""
        start = next((self.after[gram] for gram in self._endings(len(self.text)) if gram in self.after), None)
        found = [] if start is None else self.text[start : start + num_tokens]
        return Proposal(torch.tensor(found, dtype=torch.int64, device=self.device))

    def accept(self, verified: Verified) -> None:
        """Read the accepted tokens; the first of `verified.ids` has been read before."""
        self._read(verified.ids[1:].tolist())

    def _read(self, tokens: list[int]) -> None:
        for token in tokens:
            for gram in self._endings(len(self.text)):
                self.after[gram] = len(self.text)
            self.text.append(token)

    def _endings(self, end: int) -> list[tuple[int, ...]]:
        """The n-grams that end before position `end`, the longest first."""
        return [tuple(self.text[end - size : end]) for size in self.sizes if size <= end]
