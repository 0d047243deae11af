"""Simulated acceptance length against a replay token by token."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from specdec_core.nn.replay import simulated_acceptance_length


def by_hand(matches: list[list[bool]], starts: list[bool], documents: list[int]) -> tuple[int, int]:
    tokens = cycles = 0
    for document in sorted(set(documents)):
        slots = [i for i, d in enumerate(documents) if d == document]
        at = slots[0]
        while at <= slots[-1]:
            if not starts[at]:
                at += 1
                continue
            accepted = 0
            while accepted < len(matches) and matches[accepted][at]:
                accepted += 1
            tokens, cycles, at = tokens + accepted + 1, cycles + 1, at + accepted + 1
    return tokens, cycles


@given(st.integers(1, 4), st.lists(st.integers(1, 9), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_equals_by_hand(depth: int, sizes: list[int], random: object) -> None:
    documents = [d for d, size in enumerate(sizes) for _ in range(size)]
    flip = lambda: random.random() < 0.6  # type: ignore[attr-defined]  # noqa: E731
    matches = [[flip() for _ in documents] for _ in range(depth)]
    starts = [flip() for _ in documents]
    got = simulated_acceptance_length(torch.tensor(matches), torch.tensor(starts), torch.tensor(documents))
    assert got == by_hand(matches, starts, documents)


def test_a_mean_over_slots_would_differ() -> None:
    # One slot of three predicts everything: a mean over slots says 1.67, but the replay starts there.
    matches = torch.tensor([[True, False, False]] * 2)
    assert simulated_acceptance_length(matches, torch.ones(3, dtype=torch.bool), torch.zeros(3)) == (3, 1)
