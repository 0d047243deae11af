"""The shape of a proposal whose tokens branch, and the way down it that the target takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DraftTree:
    """n nodes below a root, the last token emitted, which is no node.

    parents  [n] index of the node before each node, -1 for the root
    depths   [n] from 1: how many tokens after the root a node lies
    """

    parents: tuple[int, ...]
    depths: tuple[int, ...]

    @classmethod
    def of(cls, parents: Sequence[int]) -> DraftTree:
        """Raises ValueError unless every parent is the root or comes before its children."""
        depths: list[int] = []
        for node, parent in enumerate(parents):
            if not -1 <= parent < node:
                raise ValueError(
                    f"node {node} of a proposal's tree has parent {parent}; a parent is a node before it, or -1"
                )
            depths.append(1 if parent == -1 else depths[parent] + 1)
        return cls(tuple(parents), tuple(depths))

    @property
    def depth(self) -> int:
        """Of the deepest node."""
        return max(self.depths, default=0)

    @property
    def is_chain(self) -> bool:
        """Whether each node follows the one before it."""
        return self.depth == len(self.parents)

    def nodes_within(self, depth: int) -> list[int]:
        """The nodes that lie at most so deep."""
        return [node for node, own in enumerate(self.depths) if own <= depth]

    def pruned(self, nodes: Sequence[int]) -> DraftTree:
        """The tree of some nodes, ascending; with a node its parent is among them."""
        place = {-1: -1, **{node: new for new, node in enumerate(nodes)}}
        return DraftTree(tuple(place[self.parents[node]] for node in nodes), tuple(self.depths[node] for node in nodes))

    @property
    def slots(self) -> tuple[int, ...]:
        """[n + 1] the parent of each slot of the forward that reads the root, at slot 0, and then the nodes."""
        return (-1, *(parent + 1 for parent in self.parents))

    def descend(self, tokens: Sequence[int], following: Sequence[int]) -> list[int]:
        """The slots, from the root's, through which the target's own choices lead.

        tokens [n] are the nodes'; following [n + 1] is what the target puts after each slot. It goes to the child
        that holds the token put after its parent, until no child does. Raises ValueError if two siblings hold the
        same token.
        """
        child: dict[tuple[int, int], int] = {}
        for node, (parent, token) in enumerate(zip(self.parents, tokens, strict=True)):
            twin = child.setdefault((parent + 1, token), node + 1)
            if twin != node + 1:
                raise ValueError(
                    f"nodes {twin - 1} and {node} of a proposal's tree have one parent and one token, {token}; "
                    "leave one of them out"
                )
        path: list[int] = []
        slot: int | None = 0
        while slot is not None:
            path.append(slot)
            slot = child.get((slot, following[slot]))
        return path
