"""What a text's emissions add up to."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from specdec_core.decode.loop import Emission
from specdec_core.evaluate.tally import Tally


def emission(
    tokens: int, accepted: int, proposed: int, seconds: float = 1.0, prefill: bool = False, branches: int = 0
) -> Emission:
    """`branches` are the nodes beside a chain of `proposed` tokens."""
    return Emission(
        tuple(range(tokens)), accepted, proposed, proposed + branches, seconds / 4, 3 * seconds / 4, prefill
    )


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
    assert (tally.nodes, tally.largest, tally.drafting) == (11, 3, "chain")
    assert (tally.draft_seconds, tally.target_seconds, tally.prefill_seconds) == (1.25, 3.75, 10)
    assert tally.tokens_per_second == 2.0
    assert tally.tokens_per_second_with_prefill == 11 / 15


def test_an_empty_tally_divides_by_nothing() -> None:
    assert (Tally().tau, Tally().acceptance, Tally().tokens_per_second) == (0.0, (), 0.0)
    assert Tally.of([emission(1, 0, 0, prefill=True)]).tau == 0.0


def test_positions_in_a_tree_are_depths_and_its_nodes_are_named() -> None:
    emissions = [emission(1, 0, 0, prefill=True), emission(3, 2, 4, branches=8), emission(1, 0, 3, branches=4)]
    tally = Tally.of([*emissions, emission(1, 0, 0)])
    assert (tally.proposed, tally.accepted) == ((2, 2, 2, 1), (1, 1))
    assert (tally.nodes, tally.largest, tally.is_tree) == (19, 12, True)
    assert tally.drafting == "tree of up to 12 nodes (on average 9.5)"
    together = tally + Tally.of([emission(2, 1, 2)])
    assert together.drafting == "tree of up to 12 nodes (on average 7.0)"


rounds = st.tuples(st.integers(0, 5), st.integers(0, 9)).flatmap(
    lambda drawn: st.integers(0, drawn[0]).map(
        lambda accepted: emission(accepted + 1, accepted, drawn[0], branches=drawn[1] if drawn[0] else 0)
    )
)


@given(st.lists(st.lists(rounds, max_size=6), max_size=5))
def test_tallies_add_up(texts: list[list[Emission]]) -> None:
    together = Tally.of([e for text in texts for e in text])
    assert replace(Tally.total(Tally.of(text) for text in texts), prompts=1) == together
    assert together.tokens == together.rounds + sum(together.accepted)
    assert all(later <= earlier for earlier, later in zip(together.accepted, together.accepted[1:], strict=False))
