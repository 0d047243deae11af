from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_targets import PlainTarget

from specdec_core.algorithm.proposal import Sampling, Verified
from specdec_core.capture.features import Features
from specdec_core.decode.loop import decode
from specdec_ngram.drafter import LookupDrafter


def plain_lookup(text: list[int], count: int, longest: int, shortest: int) -> list[int]:
    for size in range(longest, shortest - 1, -1):
        for start in range(len(text) - size - 1, -1, -1):
            if text[start : start + size] == text[-size:]:
                return text[start + size : start + size + count]
    return []


def verified(ids: list[int], start: int) -> Verified:
    return Verified(torch.tensor(ids), Features(), start)


@given(
    prompt=st.lists(st.integers(0, 3), min_size=2, max_size=12),
    accepted=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), max_size=6),
    count=st.integers(1, 5),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)).map(sorted),
)
def test_proposals_equal_a_plain_search(
    prompt: list[int], accepted: list[list[int]], count: int, sizes: list[int]
) -> None:
    shortest, longest = sizes
    drafter, text = LookupDrafter(longest, shortest), list(prompt)
    drafter.begin(verified(prompt, 0))
    for tokens in [*accepted, None]:
        proposal = drafter.propose(count, Sampling())
        assert proposal.tokens.dtype == torch.int64
        assert proposal.tokens.tolist() == plain_lookup(text, count, longest, shortest)
        assert (proposal.parents, proposal.probs) == (None, None)
        if tokens:
            drafter.accept(verified([text[-1], *tokens], len(text) - 1))
            text += tokens


@pytest.mark.parametrize(
    ("text", "shortest", "expected"),
    [
        ([1, 2, 3, 9, 1, 2, 3], 1, [9, 1]),  # three tokens match
        ([7, 2, 3, 8, 1, 2, 3, 9, 7, 2, 3], 1, [8, 1]),  # the longest wins over the most recent
        ([5, 1, 6, 1, 4, 1], 1, [4, 1]),  # the most recent of equal length
        ([5, 1, 6, 1, 4, 1], 2, []),  # one token is too few
        ([1, 1], 1, [1]),  # no more than there is
        ([1, 2, 3], 1, []),
    ],
)
def test_what_is_proposed(text: list[int], shortest: int, expected: list[int]) -> None:
    drafter = LookupDrafter(3, shortest)
    drafter.begin(verified(text, 0))
    assert drafter.propose(2, Sampling()).tokens.tolist() == expected


def test_a_drafter_can_begin_again() -> None:
    drafter = LookupDrafter(3, 1)
    drafter.begin(verified([1, 2, 1], 0))
    drafter.begin(verified([3, 1], 0))
    assert drafter.propose(2, Sampling()).tokens.tolist() == []


def test_a_text_that_repeats_is_decoded_in_few_forwards() -> None:
    target = PlainTarget(lambda ids: torch.eye(8)[(ids + 1) % 8], 8)
    emissions = list(decode(target, LookupDrafter(3, 1), [0], num_draft_tokens=4, max_new_tokens=48))
    assert [token for e in emissions for token in e.tokens] == [(i + 1) % 8 for i in range(48)]
    assert len(emissions) < 20
