"""Trees of draft tokens: the way down them against a plain search, texts decoded with them against the target alone."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_targets import PlainTarget, ScriptedDrafter
from torch import Generator, Tensor

from specdec_core.algorithm.proposal import Drafter, Proposal, Sampling, Verified
from specdec_core.capture.features import CapturePlan
from specdec_core.decode.loop import Emission, decode, prompt_batch
from specdec_core.decode.tree import DraftTree
from specdec_core.errors import UserError
from specdec_core.evaluate.evaluator import Method, evaluate
from specdec_core.evaluate.prompts import Prompt
from specdec_core.evaluate.report import as_json, conditions_line, figures_lines
from specdec_core.evaluate.run import DRAFT, Measured
from specdec_core.target.base import DecodeSession, Target
from specdec_core.target.session import HFDecodeSession

VOCAB = 6
TABLE = torch.randn(VOCAB, VOCAB, VOCAB, generator=Generator().manual_seed(4))

Tree = tuple[list[int], list[int]]
"""Tokens and parents."""


def next_logits(ids: Tensor) -> Tensor:
    """What follows depends on the last two tokens."""
    return TABLE[torch.cat([ids.new_zeros(1), ids[:-1]]), ids]


def random_tree(draw: random.Random, nodes: int, vocab: int) -> Tree:
    """Siblings differ; a node with a child for every token gets no further one."""
    tokens: list[int] = []
    parents: list[int] = []
    for node in range(nodes):
        parent = draw.randrange(-1, node)
        taken = {token for token, other in zip(tokens, parents, strict=True) if other == parent}
        if free := sorted(set(range(vocab)) - taken):
            tokens.append(draw.choice(free))
            parents.append(parent)
        else:
            return tokens, parents
    return tokens, parents


def way_to(parents: list[int], node: int) -> list[int]:
    return [] if node == -1 else [*way_to(parents, parents[node]), node]


trees = st.builds(random_tree, st.randoms(use_true_random=False), st.integers(0, 14), st.integers(1, 4))


class TreeDrafter(ScriptedDrafter):
    """Proposes what `grow(text so far, depth asked for)` says."""

    def __init__(self, grow: Callable[[list[int], int], Tree]) -> None:
        super().__init__(lambda text, n: [])
        self.grow = grow

    def propose(self, num_tokens: int, sampling: Sampling) -> Proposal:
        self.asked.append(num_tokens)
        tokens, parents = self.grow(self.text, num_tokens)
        return Proposal(torch.tensor(tokens, dtype=torch.int64), torch.tensor(parents, dtype=torch.int64))


def tokens_of(emissions: list[Emission]) -> list[int]:
    return [token for emission in emissions for token in emission.tokens]


# The shape, and the way down


@given(trees)
def test_depths_and_pruning_equal_the_ways_to_each_node(tree: Tree) -> None:
    tokens, parents = tree
    shape = DraftTree.of(parents)
    ways = [way_to(parents, node) for node in range(len(parents))]
    assert shape.depths == tuple(len(way) for way in ways)
    assert shape.depth == max(map(len, ways), default=0)
    assert shape.is_chain == (parents == list(range(-1, len(parents) - 1)))
    assert shape.slots == (-1, *(parent + 1 for parent in parents))
    for depth in range(shape.depth + 2):
        nodes = shape.nodes_within(depth)
        assert nodes == [node for node, way in enumerate(ways) if len(way) <= depth]
        pruned = shape.pruned(nodes)
        assert DraftTree.of(pruned.parents) == pruned
        kept = [tokens[node] for node in nodes]
        texts = [[kept[node] for node in way_to(list(pruned.parents), new)] for new in range(len(nodes))]
        assert texts == [[tokens[node] for node in ways[old]] for old in nodes]


@given(trees, st.data())
def test_the_way_down_is_the_longest_that_the_target_would_have_gone(tree: Tree, data: st.DataObject) -> None:
    tokens, parents = tree
    count = len(tokens)
    following = data.draw(st.lists(st.integers(0, 3), min_size=count + 1, max_size=count + 1))
    right = [
        way
        for way in ([], *(way_to(parents, node) for node in range(count)))
        if all(tokens[node] == following[before + 1] for before, node in zip([-1, *way], way, strict=False))
    ]
    longest = max(right, key=len)
    assert DraftTree.of(parents).descend(tokens, following) == [0, *(node + 1 for node in longest)]


@pytest.mark.parametrize(
    ("parents", "node", "parent"), [([0], 0, 0), ([-1, 1], 1, 1), ([-1, -2], 1, -2), ([1, -1], 0, 1)]
)
def test_a_parent_that_does_not_come_before_its_child_is_named(parents: list[int], node: int, parent: int) -> None:
    drafter = TreeDrafter(lambda text, n: (list(range(len(parents))), parents))
    expected = f"node {node} of a proposal's tree has parent {parent}; a parent is a node before it, or -1"
    with pytest.raises(ValueError, match=f"^{expected}$"):
        list(decode(PlainTarget(next_logits, VOCAB), drafter, [0]))


@pytest.mark.parametrize(("parents", "twins"), [([-1, -1, -1], "0 and 2"), ([-1, 0, 1, 0], "1 and 3")])
def test_siblings_with_one_token_are_named(parents: list[int], twins: str) -> None:
    drafter = TreeDrafter(lambda text, n: ([5, 4, 5] if len(parents) == 3 else [5, 4, 5, 4], parents))
    with pytest.raises(ValueError, match=f"^nodes {twins} of a proposal's tree have one parent and one token, [45]; "):
        list(decode(PlainTarget(next_logits, VOCAB), drafter, [0]))


def test_a_tree_needs_a_parent_for_each_token() -> None:
    drafter = TreeDrafter(lambda text, n: ([1, 2], [-1]))
    with pytest.raises(ValueError, match="a proposal of 2 tokens came with 1 parents"):
        list(decode(PlainTarget(next_logits, VOCAB), drafter, [0]))


class DrawnTree(TreeDrafter):
    def propose(self, num_tokens: int, sampling: Sampling) -> Proposal:
        proposal = super().propose(num_tokens, sampling)
        return Proposal(proposal.tokens, proposal.parents, torch.ones(proposal.tokens.numel(), VOCAB) / VOCAB)


def test_a_tree_that_was_drawn_is_verified_greedily_and_refused_above_temperature_0() -> None:
    target, drafter = PlainTarget(next_logits, VOCAB), DrawnTree(lambda text, n: ([1, 2], [-1, -1]))
    with pytest.raises(UserError, match=r"sampled a tree, .*; configure it to draft a chain"):
        list(decode(target, drafter, [0], sampling=Sampling(1.0)))
    drawn = DrawnTree(lambda text, n: ([1, 2], [-1, -1]))
    alone = tokens_of(list(decode(target, None, [0])))
    assert tokens_of(list(decode(target, drawn, [0]))) == alone


# Greedy texts on a target that recomputes every path


def mixed(truth: list[int], draw: random.Random, nodes: int, vocab: int) -> Callable[[list[int], int], Tree]:
    """Trees whose tokens are often the right ones at their depth, whatever stands before them."""

    def grow(text: list[int], depth: int) -> Tree:
        tokens, parents = random_tree(draw, draw.randrange(nodes + 1), vocab)
        depths = DraftTree.of(parents).depths
        ahead = truth[len(text) :]
        for node, own in enumerate(depths):
            siblings = {tokens[other] for other in range(len(tokens)) if parents[other] == parents[node]}
            if own <= len(ahead) and ahead[own - 1] not in siblings and draw.random() < 0.7:
                tokens[node] = ahead[own - 1]
        return tokens, parents

    return grow


@settings(deadline=None, max_examples=60)
@given(
    draw=st.randoms(use_true_random=False),
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5),
    depth=st.integers(1, 6),
    length=st.integers(1, 30),
    stops=st.sampled_from([(), (3,), (1, 4)]),
)
def test_a_greedy_text_is_the_targets_own_whatever_the_trees(
    draw: random.Random, prompt: list[int], depth: int, length: int, stops: tuple[int, ...]
) -> None:
    target = PlainTarget(next_logits, VOCAB)
    endless = tokens_of(list(decode(target, None, prompt, max_new_tokens=length + 8)))
    alone = list(decode(target, None, prompt, max_new_tokens=length, stop_token_ids=stops))
    drafter = TreeDrafter(mixed(prompt + endless, draw, nodes=12, vocab=VOCAB))
    emissions = list(
        decode(target, drafter, prompt, num_draft_tokens=depth, max_new_tokens=length, stop_token_ids=stops)
    )
    assert tokens_of(emissions) == tokens_of(alone)
    assert all(0 <= e.accepted <= e.proposed <= min(depth, e.nodes) for e in emissions)
    assert all(e.accepted in (len(e.tokens), len(e.tokens) - 1) for e in emissions)


def counting_target(context: int = 10**6) -> PlainTarget:
    """After token t comes t + 1."""
    return PlainTarget(lambda ids: torch.eye(60)[(ids + 1) % 60], 60, context=context)


def comb(text: list[int], depth: int) -> Tree:
    """Five levels, whatever is asked for: on each a wrong token, and the right one, from which the next level hangs."""
    tokens = [text[-1] + 1 + level + wrong for level in range(5) for wrong in (7, 0)]
    return tokens, [-1, -1, 1, 1, 3, 3, 5, 5, 7, 7]


def test_a_round_counts_its_depth_its_nodes_and_what_was_accepted() -> None:
    target = counting_target()
    emissions = list(decode(target, TreeDrafter(comb), [0], num_draft_tokens=3, max_new_tokens=11))
    assert [e.tokens for e in emissions] == [(1,), (2, 3, 4, 5), (6, 7, 8, 9), (10, 11)]
    assert [(e.accepted, e.proposed, e.nodes) for e in emissions] == [(0, 0, 0), (3, 3, 6), (3, 3, 6), (1, 1, 2)]
    assert target.session.forwards == [7, 7, 3]


def test_what_lies_below_an_accepted_stop_token_does_not_count() -> None:
    *_, last = decode(counting_target(), TreeDrafter(comb), [0], num_draft_tokens=4, stop_token_ids=[3])
    assert (last.tokens, last.accepted, last.proposed, last.nodes) == ((2, 3), 2, 2, 4)


def test_a_tree_without_branches_is_read_as_a_chain() -> None:
    target = counting_target()
    drafter = TreeDrafter(lambda text, n: ([text[-1] + 1, text[-1] + 2], [-1, 0]))
    emissions = list(decode(target, drafter, [0], max_new_tokens=7, sampling=Sampling()))
    assert target.session.parents is None
    assert [e.nodes for e in emissions[1:]] == [e.proposed for e in emissions[1:]] == [2, 2]


@pytest.mark.parametrize("length", [7, 8, 20])
def test_the_context_is_filled_and_not_passed(length: int) -> None:
    emissions = decode(counting_target(context=10), TreeDrafter(comb), [0, 1, 2], max_new_tokens=length)
    assert tokens_of(list(emissions)) == [3, 4, 5, 6, 7, 8, 9]


def test_a_report_says_that_drafts_were_trees_and_how_large() -> None:
    prompts = [Prompt("p", "sums", ({"role": "user", "content": "Count."},))]
    methods = [
        Method(DRAFT, 4, lambda: TreeDrafter(comb)),
        Method("a chain", 4, lambda: ScriptedDrafter(lambda text, n: [])),
    ]
    evaluation = evaluate(
        counting_target(), prompts, lambda _: prompt_batch(torch.tensor([0])), methods, max_new_tokens=14
    )
    evaluation.check()
    measured = Measured(evaluation, {}, "float32")
    assert "plain; tree of up to 8 nodes (on average 6.7), T = 0, " in conditions_line(measured)
    speed, tau, other = figures_lines(evaluation)
    assert "with k = 4 levels of draft tokens." in speed
    assert tau == "τ = 4.33 tokens per forward of the target."
    assert other.endswith("τ = 1.00 (chain, k = 4).")
    found = as_json(measured)
    assert found["conditions"]["drafting"] == found["methods"][1]["drafting"] != "chain"
    assert found["methods"][0]["drafting"] == found["methods"][2]["drafting"] == "chain"
    assert found["methods"][1]["acceptance"] == [1.0] * 4


# A real cache


@settings(deadline=None, max_examples=15)
@given(draw=st.randoms(use_true_random=False), length=st.integers(2, 30), depth=st.integers(1, 5))
def test_a_cache_that_trees_went_through_is_that_of_the_text_alone(
    tiny_target: Target, draw: random.Random, length: int, depth: int
) -> None:
    vocab = tiny_target.facts.vocab_size
    prompt = [draw.randrange(vocab) for _ in range(draw.randrange(1, 8))]
    alone = tokens_of(list(decode(tiny_target, None, prompt, max_new_tokens=length + 6)))
    # Many nodes and no room to spare: the last rounds need more slots than the text will ever have.
    drafter = RealDrafter(mixed(prompt + alone, draw, nodes=40, vocab=vocab))
    watched = Watched(tiny_target)
    plan = CapturePlan(layers=(1, 3), last_hidden=True)
    emissions = list(
        decode(watched, drafter, prompt, plan=plan, num_draft_tokens=depth, max_new_tokens=length)  # type: ignore[arg-type]
    )
    text = prompt + tokens_of(emissions)
    assert text == prompt + alone[:length]
    drafter.check(tiny_target, plan, text)

    session, fresh = watched.session, tiny_target.decode(plan, len(text))
    assert isinstance(session, HFDecodeSession)
    assert isinstance(fresh, HFDecodeSession)
    held = session.length
    assert held == len(text) - 1
    fresh.prefill(prompt_batch(torch.tensor(text[:held])))
    for ours, theirs in zip(session._buffers, fresh._buffers, strict=True):
        assert ours.get_seq_length() == theirs.get_seq_length() == held
        for found, expected in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
            torch.testing.assert_close(found[:, :, :held], expected[:, :, :held], rtol=1e-4, atol=1e-4)


class RealDrafter(TreeDrafter):
    """Keeps the features that it is given, to be held against those of the whole text."""

    def __init__(self, grow: Callable[[list[int], int], Tree]) -> None:
        super().__init__(grow)
        self.seen: list[tuple[Tensor, ...]] = []

    def _read(self, verified: Verified) -> None:
        self.text = self.text[: verified.start] + verified.ids.tolist()
        self.seen += zip(*(x[0] for x in verified.features.tensors()), strict=True)

    def check(self, target: Target, plan: CapturePlan, text: list[int]) -> None:
        whole = target.capture(prompt_batch(torch.tensor(text)), plan)
        for slot, found in enumerate(self.seen):
            for ours, theirs in zip(found, whole.tensors(), strict=True):
                torch.testing.assert_close(ours, theirs[0, slot], rtol=1e-4, atol=1e-4)


class Watched:
    """A target whose last session can be looked at."""

    session: DecodeSession

    def __init__(self, target: Target) -> None:
        self.target = target

    def __getattr__(self, name: str) -> object:
        return getattr(self.target, name)

    def decode(self, plan: CapturePlan, capacity: int) -> DecodeSession:
        self.session = self.target.decode(plan, capacity)
        return self.session


@pytest.mark.parametrize(("parents", "expected"), [(None, 1), ([-1, -1, 0], 2)])
def test_a_round_waits_for_the_device_once(
    tiny_target: Target, parents: list[int] | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for what was decided; a tree's parents, on the CPU already, are read besides."""
    whole = Proposal(torch.tensor([5, 6, 7]), None if parents is None else torch.tensor(parents))

    class Fixed(Drafter):
        def begin(self, verified: Verified) -> None:
            pass

        def propose(self, num_tokens: int, sampling: Sampling) -> Proposal:
            return whole

        def accept(self, verified: Verified) -> None:
            pass

    read: list[str] = []
    for name in ("tolist", "item", "__int__"):
        method = getattr(Tensor, name)
        monkeypatch.setattr(Tensor, name, lambda x, n=name, own=method: read.append(n) or own(x))
    rounds = decode(tiny_target, Fixed(), [5, 6, 7], num_draft_tokens=3, max_new_tokens=99)
    next(rounds), next(rounds)  # the prompt, and a round in which a tree's mask is made
    for _ in range(3):
        read.clear()
        next(rounds)
        assert read == ["tolist"] * expected


def test_a_target_that_cannot_read_trees_says_so(load: Callable[..., Target]) -> None:
    drafter = RealDrafter(lambda text, n: ([1, 2], [-1, -1]))
    with pytest.raises(UserError, match=r'only with target\.attention = "sdpa"'):
        list(decode(load("gemma2"), drafter, [5, 6, 7]))


def test_a_path_that_is_too_long_for_a_session_is_refused_and_branches_are_not(tiny_target: Target) -> None:
    session = tiny_target.decode(CapturePlan(), capacity=6)
    session.prefill(prompt_batch(torch.tensor([5, 6, 7, 8])))
    with pytest.raises(UserError, match="would grow to 7 tokens; this session was opened with room for 6"):
        session.forward(torch.tensor([1, 2, 3, 4]), [-1, 0, 1, 0])
    logits, _ = session.forward(torch.tensor([1, *range(9)]), [-1, *[0] * 9])
    session.keep([0, 4])
    assert (session.length, len(logits)) == (6, 10)
