"""A chain that ends early where the draft is unsure."""

from __future__ import annotations

import pytest
import torch
from eagle3_support import HIDDEN, VOCAB, make
from torch import Tensor

from specdec_core.algorithm.proposal import Proposal, Sampling, Verified
from specdec_core.capture.features import Features
from specdec_eagle3.config import Eagle3Config

LENGTH, K = 6, 5


def proposal(min_confidence: float, temperature: float) -> Proposal:
    algorithm, draft, target = make(Eagle3Config(steps=3, min_confidence=min_confidence), None)
    with torch.no_grad():
        draft.lm_head.weight.mul_(30)
    generator = torch.Generator().manual_seed(3)
    states = {layer: torch.randn(1, LENGTH, HIDDEN, generator=generator) for layer in (2, 6, 9)}
    ids = torch.randint(0, VOCAB, (LENGTH + 1,), generator=generator)
    drafter = algorithm.drafter(draft, target)
    drafter.begin(Verified(ids, Features(states), 0))
    return drafter.propose(K, Sampling(temperature, torch.Generator().manual_seed(5)))


def confidences(whole: Proposal) -> Tensor:
    assert whole.probs is not None
    return whole.probs.gather(1, whole.tokens.unsqueeze(1)).squeeze(1).cumprod(0)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("min_confidence", [0.01, 0.2, 0.6, 0.999999])
def test_a_chain_ends_after_the_token_that_makes_it_unsure(min_confidence: float, temperature: float) -> None:
    whole, cut = proposal(0.0, temperature), proposal(min_confidence, temperature)
    assert whole.tokens.numel() == K
    assert torch.equal(cut.tokens, whole.tokens[: cut.tokens.numel()])
    if temperature:
        below = (confidences(whole) < min_confidence).nonzero().flatten().tolist()
        assert cut.tokens.numel() == (below[0] + 1 if below else K)
        assert cut.probs is not None
        assert len(cut.probs) == cut.tokens.numel()


@torch.no_grad()
def test_some_values_cut_and_some_do_not() -> None:
    lengths = [proposal(value, 0.7).tokens.numel() for value in (0.001, 0.2, 0.6, 0.999999)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1] == 1
