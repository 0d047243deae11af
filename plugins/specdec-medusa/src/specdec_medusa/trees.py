"""Which tokens a drafted tree is made of (arXiv 2401.10774, section 2.1.2 and 2.3.3).

A tree is a set of paths. A path holds a rank for each head from the first: (0, 2) is the node of head 1's third
guess below that of head 0's first.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

Choices = tuple[tuple[int, ...], ...]


def check_choices(choices: Choices, heads: int) -> None:
    """Raises ValueError if the paths make no tree that so many heads can draft."""
    if not choices:
        raise ValueError("a tree holds at least one path")
    known: set[tuple[int, ...]] = {()}
    for path in sorted(choices, key=len):
        shown = list(path)
        if not path or min(path) < 0:
            raise ValueError(f"{shown} is no path: it holds one rank, from 0, for each head from the first")
        if len(path) > heads:
            raise ValueError(f"path {shown} needs {len(path)} heads, there are {heads}")
        if path in known:
            raise ValueError(f"path {shown} stands there twice")
        if path[:-1] not in known:
            raise ValueError(f"path {shown} hangs on {shown[:-1]}, which is no path of the tree")
        known.add(path)


def rank_accuracy(top: float, rank: int) -> float:
    """How likely a head's guess of a rank, from 0, is right, if its first guess is right with probability `top`.

    An assumption, not a law: each further guess is right half as often as the ones before it leave room for.
    """
    return top * ((1 - top) / 2) ** rank


def best_tree(size: int, accuracies: Sequence[float], widest: int) -> Choices:
    """The `size` nodes that are most likely to be accepted, if heads err independently of each other.

    A node is accepted if every guess on its path is right. Nodes are added greedily, the likeliest first; among equals
    the shallower, then the one of lower ranks. A head has `widest` guesses; the tree is smaller if these run out.
    """
    found: list[tuple[int, ...]] = []
    waiting: list[tuple[float, int, tuple[int, ...]]] = []

    def wait(path: tuple[int, ...]) -> None:
        likely = math.prod(rank_accuracy(top, rank) for top, rank in zip(accuracies, path, strict=False))
        heapq.heappush(waiting, (-likely, len(path), path))

    wait((0,))
    while waiting and len(found) < size:
        *_, path = heapq.heappop(waiting)
        found.append(path)
        if path[-1] + 1 < widest:
            wait((*path[:-1], path[-1] + 1))
        if len(path) < len(accuracies):
            wait((*path, 0))
    return in_order(found)


def in_order(choices: Sequence[tuple[int, ...]]) -> Choices:
    """By depth and then by rank, so that parents come before their children."""
    return tuple(sorted(choices, key=lambda path: (len(path), path)))
