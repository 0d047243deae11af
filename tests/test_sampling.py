"""Rejection sampling emits the target's own distribution, and these tests can tell when it does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from plain_targets import PlainTarget, ScriptedDrafter
from torch import Generator, Tensor

from specdec_core.algorithm.proposal import Proposal, Sampling
from specdec_core.decode import verify
from specdec_core.decode.loop import decode
from specdec_core.decode.verify import accept_sampled, distribution

VOCAB = 5
Rule = Callable[[Tensor, Tensor, Tensor | None, Generator | None], tuple[Tensor, Tensor]]

# Slot by slot: what the target and the draft hold likely. They agree nowhere; the draft never proposes token 4.
TARGET = torch.tensor([[0.5, 0.2, 0.15, 0.0, 0.15], [0.1, 0.1, 0.1, 0.3, 0.4], [0.05, 0.05, 0.6, 0.2, 0.1]])
DRAFT = torch.tensor([[0.2, 0.4, 0.1, 0.3, 0.0], [0.4, 0.3, 0.2, 0.1, 0.0]])


def p_value(counts: Sequence[float], expected: Sequence[float]) -> float:
    """Pearson's chi-square: how likely counts at least so far from the expected ones are."""
    seen, wanted = torch.tensor(counts, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64)
    if bool((seen[wanted == 0] > 0).any()):
        return 0.0
    seen, wanted = seen[wanted > 0], wanted[wanted > 0]
    wanted = wanted * seen.sum() / wanted.sum()
    statistic = ((seen - wanted) ** 2 / wanted).sum()
    return float(torch.special.gammaincc(torch.tensor((len(seen) - 1) / 2, dtype=torch.float64), statistic / 2))


def emitted(rule: Rule, rounds: int, deterministic: bool) -> list[Counter[int]]:
    """What stands at each slot after `rounds` proposals of two tokens."""
    generator = Generator().manual_seed(1)
    drawn = torch.stack([row.multinomial(rounds, replacement=True, generator=generator) for row in DRAFT], dim=1)
    probs = None if deterministic else DRAFT
    slots: list[Counter[int]] = [Counter() for _ in TARGET]
    with torch.inference_mode():
        for tokens in drawn:
            accepted, token = rule(tokens, TARGET, probs, generator)
            count, last, *proposed = torch.cat([accepted, token, tokens]).tolist()
            for slot, value in enumerate([*proposed[:count], last]):
                slots[slot][value] += 1
    return slots


def worst(slots: list[Counter[int]]) -> float:
    return min(
        p_value([slot[token] for token in range(VOCAB)], row) for slot, row in zip(slots, TARGET.tolist(), strict=True)
    )


@pytest.mark.parametrize("deterministic", [False, True])
def test_emitted_tokens_follow_the_target(deterministic: bool) -> None:
    slots = emitted(accept_sampled, 100_000, deterministic)
    assert slots[0].total() == 100_000
    assert worst(slots) > 1e-3
    # Chen et al.: a token is accepted with probability sum(min(p, q)); a deterministic one with p.
    kept = DRAFT * TARGET[:2] if deterministic else torch.minimum(DRAFT, TARGET[:2])
    rates = kept.sum(-1).tolist()
    expected = [rates[0], rates[0] * rates[1]]
    assert [slots[1].total() / 1e5, slots[2].total() / 1e5] == pytest.approx(expected, abs=0.006)


def accept_all(tokens: Tensor, p: Tensor, q: Tensor | None, g: Generator | None) -> tuple[Tensor, Tensor]:
    return torch.tensor([len(tokens)]), p[-1].multinomial(1, generator=g)


def no_residual(tokens: Tensor, p: Tensor, q: Tensor | None, g: Generator | None) -> tuple[Tensor, Tensor]:
    accepted, _ = accept_sampled(tokens, p, q, g)
    return accepted, p[int(accepted)].multinomial(1, generator=g)


def matches_only(tokens: Tensor, p: Tensor, q: Tensor | None, g: Generator | None) -> tuple[Tensor, Tensor]:
    """Accept a token where the target draws the same one, and forget what it drew."""
    drawn = p[: len(tokens)].multinomial(1, generator=g).squeeze(1)
    accepted = (drawn == tokens).cumprod(0).sum(0, keepdim=True)
    return accepted, p[int(accepted)].multinomial(1, generator=g)


def residual_of_the_next_slot(
    tokens: Tensor, p: Tensor, q: Tensor | None, g: Generator | None
) -> tuple[Tensor, Tensor]:
    accepted, token = accept_sampled(tokens, p, q, g)
    if int(accepted) == len(tokens):
        return accepted, token
    i = int(accepted)
    q = torch.eye(VOCAB)[tokens] if q is None else q
    return accepted, (p[i + 1] - q[i]).clamp(min=0).multinomial(1, generator=g)


def wrong_way_round(tokens: Tensor, p: Tensor, q: Tensor | None, g: Generator | None) -> tuple[Tensor, Tensor]:
    q = torch.eye(VOCAB)[tokens] if q is None else q
    swapped = torch.cat([q, p[-1:]])
    accepted, _ = accept_sampled(tokens, swapped, p[:-1], g)
    return accepted, accept_sampled(tokens, p, q, g)[1]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("rule", [accept_all, no_residual, matches_only, residual_of_the_next_slot, wrong_way_round])
def test_a_broken_rule_is_found_out(rule: Rule, deterministic: bool) -> None:
    assert worst(emitted(rule, 4000, deterministic)) < 1e-9


def test_a_draft_equal_to_the_target_is_never_refused() -> None:
    generator = Generator().manual_seed(0)
    probs = torch.rand(7, 50, generator=generator).softmax(-1)
    for _ in range(300):
        tokens = probs[:-1].multinomial(1, generator=generator).squeeze(1)
        accepted, _ = accept_sampled(tokens, probs, probs[:-1], generator)
        assert accepted.tolist() == [6]


def test_rounding_that_leaves_no_residual_still_gives_a_token() -> None:
    p = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    for seed in range(50):
        accepted, token = accept_sampled(
            torch.tensor([1]), p, torch.tensor([[0.0, 3.0, 0.0]]), Generator().manual_seed(seed)
        )
        assert token.tolist() == [1]
        assert 0 <= int(accepted) <= 1


# A chain of tokens in which the next depends on the last two: what the loop must reproduce end to end.
TABLE = torch.randn(4, 4, 4, generator=Generator().manual_seed(5)) * 1.5
GUESS = torch.randn(4, 4, generator=Generator().manual_seed(6))
TEMPERATURE = 1.3


class GuessingDrafter(ScriptedDrafter):
    def __init__(self, deterministic: bool = False) -> None:
        super().__init__(lambda text, n: [])
        self.deterministic = deterministic

    def anew(self) -> GuessingDrafter:
        return GuessingDrafter(self.deterministic)

    def propose(self, num_tokens: int, sampling: Sampling) -> Proposal:
        tokens, rows, last = [], [], self.text[-1]
        for _ in range(num_tokens):
            rows.append(distribution(GUESS[last], sampling.temperature))
            last = int(rows[-1].multinomial(1, generator=sampling.generator))
            tokens.append(last)
        return Proposal(torch.tensor(tokens), probs=None if self.deterministic else torch.stack(rows))


class BranchingDrafter(GuessingDrafter):
    """Two or three children, in an order of its own, for each of a few nodes."""

    PARENTS = (-1, -1, 0, 0, 0, 1, 2, 2, 4)

    def anew(self) -> BranchingDrafter:
        return BranchingDrafter()

    def propose(self, num_tokens: int, sampling: Sampling) -> Proposal:
        tokens: list[int] = []
        for node, parent in enumerate(self.PARENTS):
            last = self.text[-1] if parent < 0 else tokens[parent]
            rank = self.PARENTS[:node].count(parent)
            tokens.append(int(GUESS[last].argsort(descending=True)[rank]))
        return Proposal(torch.tensor(tokens), torch.tensor(self.PARENTS))


def triples(drafter: GuessingDrafter | None, length: int) -> float:
    """p-value of the triples of one long sampled text."""

    def next_logits(ids: Tensor) -> Tensor:
        before = torch.cat([ids.new_zeros(1), ids[:-1]])
        return TABLE[before, ids]

    sampling = Sampling(TEMPERATURE, Generator().manual_seed(3))
    text = [0, 0]
    while len(text) < length:
        # Pieces keep the plain target's recomputation short.
        pieces = decode(
            PlainTarget(next_logits, 4), drafter and drafter.anew(), text[-2:],
            num_draft_tokens=3, max_new_tokens=100, sampling=sampling,
        )  # fmt: skip
        text += [token for piece in pieces for token in piece.tokens]
    counts = Counter(zip(text, text[1:], text[2:], strict=False))
    law = distribution(TABLE, TEMPERATURE).tolist()
    p_values = [p_value([counts[a, b, c] for c in range(4)], law[a][b]) for a in range(4) for b in range(4)]
    return min(1.0, min(p_values) * len(p_values))  # Bonferroni: sixteen tests are made


@pytest.mark.parametrize(
    "drafter",
    [None, GuessingDrafter(False), GuessingDrafter(True), BranchingDrafter()],
    ids=["target alone", "sampled draft", "deterministic draft", "tree"],
)
def test_a_sampled_text_is_the_targets_own(drafter: GuessingDrafter | None) -> None:
    assert triples(drafter, 20_000) > 1e-2


@pytest.mark.parametrize("rule", [accept_all, no_residual])
def test_the_text_shows_a_broken_rule(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "accept_sampled", rule)
    assert triples(GuessingDrafter(False), 5000) < 1e-9


@pytest.mark.parametrize("broken", ["argmax", "parents of others", "one draw for all"])
def test_the_text_shows_a_broken_tree(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = verify.next_tokens

    def wrong(logits: Tensor, sampling: Sampling) -> Tensor:
        if broken == "argmax":
            return logits.argmax(dim=-1)
        if broken == "parents of others":
            return right(logits.roll(1, 0), sampling)
        return right(logits[:1], sampling).expand(len(logits))

    monkeypatch.setattr(verify, "next_tokens", wrong)
    assert triples(BranchingDrafter(), 5000) < 1e-9


def test_the_generator_is_the_only_source_of_randomness() -> None:
    def text(seed: int) -> list[tuple[int, ...]]:
        torch.seed()  # of the global generator, which must not matter
        sampling = Sampling(1.0, Generator().manual_seed(seed))
        target = PlainTarget(lambda ids: TABLE[ids, ids], 4)
        return [e.tokens for e in decode(target, GuessingDrafter(False), [1], max_new_tokens=60, sampling=sampling)]

    assert text(0) == text(0)
    assert text(0) != text(1)


def test_temperature_flattens() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0], dtype=torch.bfloat16)
    assert distribution(logits, 2.0).tolist() == pytest.approx(torch.tensor([1.0, 0.5, 0.0]).softmax(0).tolist())
    assert distribution(logits, 1e-4).tolist() == [1.0, 0.0, 0.0]
