"""Which nodes a tree is made of."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from specdec_medusa.config import MedusaConfig
from specdec_medusa.trees import best_tree, in_order, rank_accuracy

accuracies = st.lists(st.floats(0.05, 0.95), min_size=1, max_size=4)


def likelihood(path: tuple[int, ...], tops: list[float]) -> float:
    return math.prod(rank_accuracy(top, rank) for top, rank in zip(tops, path, strict=False))


@given(st.integers(1, 12), accuracies)
def test_the_best_tree_holds_the_likeliest_of_all_nodes(size: int, tops: list[float]) -> None:
    tree = best_tree(size, tops, 99)
    every = [path for n in range(len(tops)) for path in itertools.product(range(size), repeat=n + 1)]
    best = sorted((likelihood(path, tops) for path in every), reverse=True)[:size]
    assert len(set(tree)) == size
    assert sorted((likelihood(path, tops) for path in tree), reverse=True) == pytest.approx(best)
    assert tree == in_order(tree)
    assert MedusaConfig(heads=len(tops), tree=tree).tree == tree  # a node's parent is there too


@given(accuracies, st.integers(1, 30))
def test_a_larger_tree_holds_the_smaller_one(tops: list[float], size: int) -> None:
    assert set(best_tree(size, tops, 99)) < set(best_tree(size + 1, tops, 99))


def test_a_tree_of_a_size_is_always_the_same() -> None:
    assert best_tree(6, MedusaConfig().accuracies, 99) == ((0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0))


def test_accurate_heads_make_deep_trees_and_poor_ones_wide_trees() -> None:
    deep, wide = best_tree(4, [0.9] * 4, 99), best_tree(4, [0.3, 0.01, 0.01, 0.01], 99)
    assert deep == ((0,), (0, 0), (0, 0, 0), (0, 0, 0, 0))
    assert wide == ((0,), (1,), (2,), (3,))


@given(st.floats(0.01, 0.99))
def test_guesses_of_a_head_are_right_with_falling_chances_that_sum_to_less_than_one(top: float) -> None:
    chances = [rank_accuracy(top, rank) for rank in range(50)]
    assert chances[0] == top
    assert chances == sorted(chances, reverse=True)
    assert sum(chances) < 1


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ([], "a tree holds at least one path"),
        ([[]], r"\[\] is no path"),
        ([[0], [-1]], r"\[-1\] is no path"),
        ([[0], [0]], r"path \[0\] stands there twice"),
        ([[0], [1, 0]], r"path \[1, 0\] hangs on \[1\], which is no path of the tree"),
        ([[0], [0, 0], [0, 0, 0]], r"path \[0, 0, 0\] needs 3 heads, there are 2"),
    ],
)
def test_paths_that_make_no_tree_are_named(tree: list[list[int]], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        MedusaConfig(heads=2, tree=tree)  # type: ignore[arg-type]


def test_paths_may_stand_in_any_order() -> None:
    config = MedusaConfig(heads=2, tree=[[0, 1], [1], [0]])  # type: ignore[arg-type]
    assert in_order(config.tree) == ((0,), (1,), (0, 1))  # type: ignore[arg-type]


def test_the_accuracies_that_a_tree_is_made_by() -> None:
    assert MedusaConfig(heads=3).accuracies == pytest.approx((0.5, 0.4, 0.32))
    assert MedusaConfig(heads=2, tree_accuracy=(0.3, 0.2)).accuracies == (0.3, 0.2)


@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 3))
def test_a_tree_is_no_wider_than_a_heads_guesses(size: int, widest: int, heads: int) -> None:
    tops = [0.3] * heads
    tree = best_tree(size, tops, widest)
    assert len(set(tree)) == min(size, sum(widest ** (depth + 1) for depth in range(heads)))
    assert max(map(max, tree)) < widest
    if widest >= size:
        assert tree == best_tree(size, tops, 99)
