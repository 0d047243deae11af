"""Counts of decoding, and the figures made of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from specdec_core.decode.loop import Emission


@dataclass(frozen=True)
class Tally:
    """What decoding one or more prompts took.

    The decode phase begins after the prompt has been read: the forward that reads it, and the token which that
    forward emits, count neither in `rounds` and `tokens` nor in the seconds of the phase.

    prompts                 how many
    rounds                  forwards of the target
    tokens                  tokens emitted by them, the target's own after each draft included
    draft_seconds           spent in the drafter
    target_seconds          spent in the target, acceptance included
    prefill_seconds         spent reading the prompts, by target and drafter
    proposed, accepted      by position in the draft, from the first: rounds in which a token was proposed, and accepted
                            (a position in a tree is a depth)
    nodes                   draft tokens verified, on all branches
    largest                 most nodes of one draft
    """

    prompts: int = 0
    rounds: int = 0
    tokens: int = 0
    draft_seconds: float = 0.0
    target_seconds: float = 0.0
    prefill_seconds: float = 0.0
    proposed: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()
    nodes: int = 0
    largest: int = 0

    @classmethod
    def of(cls, emissions: Sequence[Emission]) -> Tally:
        """The tally of one prompt."""
        rounds = [emission for emission in emissions if not emission.prefill]
        return cls(
            prompts=1,
            rounds=len(rounds),
            tokens=sum(len(r.tokens) for r in rounds),
            draft_seconds=sum(r.draft_seconds for r in rounds),
            target_seconds=sum(r.target_seconds for r in rounds),
            prefill_seconds=sum(e.draft_seconds + e.target_seconds for e in emissions if e.prefill),
            proposed=_reached([r.proposed for r in rounds]),
            accepted=_reached([r.accepted for r in rounds]),
            nodes=sum(r.nodes for r in rounds),
            largest=max((r.nodes for r in rounds), default=0),
        )

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            prompts=self.prompts + other.prompts,
            rounds=self.rounds + other.rounds,
            tokens=self.tokens + other.tokens,
            draft_seconds=self.draft_seconds + other.draft_seconds,
            target_seconds=self.target_seconds + other.target_seconds,
            prefill_seconds=self.prefill_seconds + other.prefill_seconds,
            proposed=_added(self.proposed, other.proposed),
            accepted=_added(self.accepted, other.accepted),
            nodes=self.nodes + other.nodes,
            largest=max(self.largest, other.largest),
        )

    @classmethod
    def total(cls, tallies: Iterable[Tally]) -> Tally:
        """The tally of several together."""
        return sum(tallies, cls())

    @property
    def tau(self) -> float:
        """Acceptance length: tokens per forward of the target, the target's own token included."""
        return _ratio(self.tokens, self.rounds)

    @property
    def acceptance(self) -> tuple[float, ...]:
        """By position: the share of the rounds which proposed a token there that accepted one."""
        accepted = [*self.accepted, *[0] * (len(self.proposed) - len(self.accepted))]
        return tuple(_ratio(a, p) for a, p in zip(accepted, self.proposed, strict=True))

    @property
    def is_tree(self) -> bool:
        """Whether a draft branched."""
        return self.nodes > sum(self.proposed)

    @property
    def drafting(self) -> str:
        """What the drafts were, as a figure must be quoted with it: chains, or trees and their nodes."""
        if not self.is_tree:
            return "chain"
        return f"tree of up to {self.largest} nodes (on average {_ratio(self.nodes, self.proposed[0]):.1f})"

    @property
    def tokens_per_second(self) -> float:
        """Of the decode phase."""
        return _ratio(self.tokens, self.draft_seconds + self.target_seconds)

    @property
    def tokens_per_second_with_prefill(self) -> float:
        """Of everything, the prompts' first tokens included."""
        return _ratio(self.tokens + self.prompts, self.draft_seconds + self.target_seconds + self.prefill_seconds)


def _reached(counts: Sequence[int]) -> tuple[int, ...]:
    """How many of `counts` reach each position from the first."""
    return tuple(sum(count > position for count in counts) for position in range(max(counts, default=0)))


def _added(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(x + y for x, y in zip_longest(a, b, fillvalue=0))


def _ratio(a: float, b: float) -> float:
    return a / b if b else 0.0
