"""What is proposed, against the heads' formulas written out by hand, and against what the heads compute in training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from medusa_support import HIDDEN, VOCAB, HeadTarget, facts, features_of, logits_by_hand, make, packed, vocab_map
from torch import Tensor

from specdec_core.algorithm.proposal import Proposal, Sampling, Verified
from specdec_core.capture.features import Features
from specdec_core.config.run import DraftSection
from specdec_core.data.batch import Batch
from specdec_core.errors import UserError
from specdec_medusa.algorithm import Medusa
from specdec_medusa.config import MedusaConfig
from specdec_medusa.model import MedusaDraft

TREE = ((0,), (2,), (0, 0), (0, 1), (2, 0), (0, 1, 0), (0, 1, 2))


def states(slots: int, seed: int = 5) -> Features:
    return Features(last_hidden=torch.randn(1, slots, HIDDEN, generator=torch.Generator().manual_seed(seed)))


def proposal(
    vocab: int | None, num_tokens: int, sampling: Sampling | None = None, **options: Any
) -> tuple[Proposal, MedusaDraft, Tensor]:
    """What follows four slots, the draft, and the state of the last of them."""
    algorithm, draft, target = make(MedusaConfig(**options), vocab)
    features = states(4)
    drafter = algorithm.drafter(draft, target)
    with torch.inference_mode():
        drafter.begin(Verified(torch.arange(5), features, start=0))
        found = drafter.propose(num_tokens, sampling or Sampling())
    assert features.last_hidden is not None
    return found, draft, features.last_hidden[0, -1]


def ranked(draft: MedusaDraft, state: Tensor) -> list[list[int]]:
    """Each head's tokens, as target ids, the likeliest first."""
    ids = torch.arange(VOCAB) if draft.draft_ids is None else draft.draft_ids
    return ids[logits_by_hand(draft, state).argsort(dim=-1, descending=True)].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("vocab", [None, 20])
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 9])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_chain_is_each_heads_likeliest_token(vocab: int | None, num_tokens: int, layers: int) -> None:
    found, draft, state = proposal(vocab, num_tokens, heads=3, layers=layers)
    assert found.tokens.tolist() == [tokens[0] for tokens in ranked(draft, state)[:num_tokens]]
    assert found.tokens.dtype == torch.int64
    assert (found.parents, found.probs) == (None, None)


def paths_of(found: Proposal) -> list[list[int]]:
    """The tokens on the way to each node."""
    assert found.parents is not None
    ways: list[list[int]] = []
    for token, parent in zip(found.tokens.tolist(), found.parents.tolist(), strict=True):
        ways.append([*(ways[parent] if parent >= 0 else []), token])
    return ways


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("vocab", [None, 20])
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 9])
def test_a_tree_holds_the_guesses_of_its_paths(temperature: float, vocab: int | None, num_tokens: int) -> None:
    found, draft, state = proposal(vocab, num_tokens, Sampling(temperature), heads=4, tree=TREE)
    tokens = ranked(draft, state)
    wanted = [[tokens[head][rank] for head, rank in enumerate(path)] for path in TREE if len(path) <= num_tokens]
    assert paths_of(found) == wanted
    assert found.probs is None
    assert found.parents is not None
    assert found.parents.device.type == "cpu"


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 6))
def test_a_tree_of_a_size_has_it_at_every_depth(size: int, num_tokens: int) -> None:
    found, draft, state = proposal(40, num_tokens, heads=3, tree=size)
    ways, tokens = paths_of(found), ranked(draft, state)
    assert len(ways) == size
    assert max(map(len, ways)) <= min(num_tokens, 3)
    assert all(way[-1] in tokens[len(way) - 1][:size] for way in ways)
    assert len({tuple(way) for way in ways}) == size


def test_a_tree_wider_than_the_draft_vocabulary_is_refused() -> None:
    algorithm, draft, target = make(MedusaConfig(tree=((0,), (20,))), 20)
    expected = r"^algorithm.tree asks for 21 guesses of one head; the draft can say 20 tokens; use a smaller tree$"
    with pytest.raises(UserError, match=expected):
        algorithm.drafter(draft, target)


@pytest.mark.parametrize("vocab", [None, 20])
def test_above_temperature_0_a_chain_is_drawn_from_the_heads(vocab: int | None) -> None:
    sampling = Sampling(0.5, torch.Generator().manual_seed(3))
    found, draft, state = proposal(vocab, 2, sampling, heads=3)
    ids = torch.arange(VOCAB) if draft.draft_ids is None else draft.draft_ids
    expected = torch.zeros(2, VOCAB).index_copy(1, ids, (logits_by_hand(draft, state)[:2] / 0.5).softmax(-1).float())
    assert found.probs is not None
    torch.testing.assert_close(found.probs, expected, rtol=1e-5, atol=1e-6)
    drawn = [proposal(vocab, 2, Sampling(0.5, torch.Generator().manual_seed(seed)), heads=3)[0] for seed in range(9)]
    assert len({tuple(one.tokens.tolist()) for one in drawn}) > 1
    assert all(float(expected[i, token]) > 0 for one in drawn for i, token in enumerate(one.tokens.tolist()))


def test_only_the_last_accepted_slot_is_read_and_nothing_is_kept_of_guesses() -> None:
    algorithm, draft, target = make(MedusaConfig(), None)
    features = states(9)
    parts, whole = algorithm.drafter(draft, target), algorithm.drafter(draft, target)
    with torch.inference_mode():
        parts.begin(Verified(torch.arange(3), features.select(slice(0, 2)), 0))
        for start, end in ((2, 3), (3, 7), (7, 9)):
            parts.propose(4, Sampling())
            parts.accept(Verified(torch.arange(start, end + 1), features.select(slice(start, end)), start))
        whole.begin(Verified(torch.arange(10), features, 0))
        assert torch.equal(parts.propose(4, Sampling()).tokens, whole.propose(4, Sampling()).tokens)


@pytest.mark.parametrize("implementation", ["plain", "fast"])
@pytest.mark.parametrize("vocab", [None, 20])
@torch.no_grad()
def test_a_proposals_distributions_are_those_of_the_training_step(implementation: Any, vocab: int | None) -> None:
    """The loss of the proposed tokens in training is what decoding says of them."""
    options = MedusaConfig(heads=3, implementation=implementation)
    algorithm, draft, target = make(options, vocab)
    slot, text = 6, list(range(8))
    batch = packed([["x" * 11]], length=11)
    features = features_of(batch)
    drafter = algorithm.drafter(draft, target)
    drafter.begin(Verified(torch.tensor(text), features.select(slice(0, slot + 1)), 0))
    found = drafter.propose(3, Sampling(1.0, torch.Generator().manual_seed(1)))
    assert found.probs is not None
    decoded = -found.probs.gather(1, found.tokens.unsqueeze(1)).squeeze(1).log()

    ids = torch.tensor([[*text, *found.tokens.tolist()]])
    for head in range(3):
        mask = torch.zeros_like(batch.loss_mask)
        mask[0, slot + 1 : slot + 3 + head] = True
        alone = Batch(ids, batch.positions, mask, batch.document_ids)
        metric = algorithm.training_step(draft, alone, features, target, torch.ones(3)).metrics[f"loss/{head + 1}"]
        assert metric.count == 1
        assert float(metric.sum) == pytest.approx(float(decoded[head]), rel=1e-4)


# The start


@pytest.mark.parametrize("vocab", [None, 20])
def test_every_head_starts_as_the_targets_own(vocab: int | None) -> None:
    algorithm, target = Medusa(MedusaConfig(heads=3, layers=2)), HeadTarget()
    draft = algorithm.build_draft(
        algorithm.draft_config(facts(), DraftSection(vocab_size=vocab)), target, vocab_map(vocab)
    )
    algorithm.init_draft(draft, target)
    state = features_of(packed([["xxxx"]], length=4)).last_hidden
    assert state is not None
    expected = target.logits(state) if draft.draft_ids is None else target.logits(state)[..., draft.draft_ids]
    logits = draft.compute_logits(draft.project_hidden_states(state))
    assert logits.shape == (3, 1, 4, vocab or VOCAB)
    for own in logits:
        torch.testing.assert_close(own, expected)
    assert len({weight.data_ptr() for weight in draft.maps}) == 3


def test_a_random_start_leaves_the_maps_random_and_the_layers_silent() -> None:
    algorithm = Medusa(MedusaConfig(heads=2))
    draft = algorithm.build_draft(algorithm.draft_config(facts(), DraftSection()), HeadTarget(), None)
    assert all(bool((parameter == 0).all()) for parameter in draft.blocks.parameters())
    first, second = draft.maps
    assert not torch.equal(first, second)


def test_a_vocabulary_of_another_size_is_refused() -> None:
    algorithm, draft, target = make(MedusaConfig(), 20)
    with pytest.raises(UserError, match="has draft_vocab_size 20, the vocabulary map 53 tokens"):
        algorithm.build_draft(draft.config, target, None)
