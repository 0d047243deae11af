"""What a text's emissions add up to."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from specdec_core.decode.loop import Emission
from specdec_core.evaluate.tally import Tally


def emission(tokens: int, accepted: int, proposed: int, seconds: float = 1.0, prefill: bool = False) -> Emission:
    return Emission(tuple(range(tokens)), accepted, proposed, seconds / 4, 3 * seconds / 4, prefill)


def test_figures_of_a_text() -> None:
    tally = Tally.of(
        [
            emission(1, 0, 0, 10, prefill=True),
            emission(4, 3, 3),
            emission(1, 0, 3),
            emission(2, 1, 3),
            emission(2, 2, 2),  # ended by a stop token among the accepted
            emission(1, 0, 0),
        ]
    )
    assert (tally.rounds, tally.tokens, tally.tau) == (5, 10, 2.0)
    assert (tally.proposed, tally.accepted) == ((4, 4, 3), (3, 2, 1))
    assert tally.acceptance == (3 / 4, 2 / 4, 1 / 3)
    assert (tally.draft_seconds, tally.target_seconds, tally.prefill_seconds) == (1.25, 3.75, 10)
    assert tally.tokens_per_second == 2.0
    assert tally.tokens_per_second_with_prefill == 11 / 15


def test_an_empty_tally_divides_by_nothing() -> None:
    assert (Tally().tau, Tally().acceptance, Tally().tokens_per_second) == (0.0, (), 0.0)
    assert Tally.of([emission(1, 0, 0, prefill=True)]).tau == 0.0


rounds = st.integers(0, 5).flatmap(
    lambda proposed: st.integers(0, proposed).map(lambda accepted: emission(accepted + 1, accepted, proposed))
)


@given(st.lists(st.lists(rounds, max_size=6), max_size=5))
def test_tallies_add_up(texts: list[list[Emission]]) -> None:
    together = Tally.of([e for text in texts for e in text])
    assert replace(Tally.total(Tally.of(text) for text in texts), prompts=1) == together
    assert together.tokens == together.rounds + sum(together.accepted)
    assert all(later <= earlier for earlier, later in zip(together.accepted, together.accepted[1:], strict=False))
