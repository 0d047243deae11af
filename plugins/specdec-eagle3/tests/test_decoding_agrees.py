"""What a draft computes when it is trained on a text is what it computes when it decodes that text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from eagle3_support import HIDDEN, VOCAB, MatrixTarget, make
from eagle3_twin import chain
from torch import Tensor
from torch.nn import functional as F

from specdec_core.algorithm.proposal import Sampling, Verified
from specdec_core.capture.features import Features
from specdec_core.data.batch import Batch
from specdec_eagle3.algorithm import Eagle3
from specdec_eagle3.config import Eagle3Config
from specdec_eagle3.model import Eagle3Draft

STEPS, BEFORE = 4, 5
VARIANTS: list[dict[str, Any]] = [
    {},
    {"norm_output": True},
    {"fc_norm": True, "norm_before_residual": True},
    {"num_layers": 2},
]
# Per round: how many guesses the target accepts.
ROUNDS = [[], [0], [2, 0, STEPS], [STEPS, 1]]


IMAGES: list[dict[str, Any]] = [
    {},
    {"positions": "temporal", "norm_output": True},
    {"positions": "sequential", "fc_norm": True},
    {"num_layers": 2},
]
IMAGE = slice(1, 4)
"""Slots of the prompt at which an image stands."""


CASES = [*((False, options) for options in VARIANTS), *((True, options) for options in IMAGES)]


def built(vocab: int | None, images: bool = False, **options: Any) -> tuple[Eagle3, Eagle3Draft, MatrixTarget]:
    """A draft of large weights, so that every key, position and embedding shows in its logits."""
    algorithm, draft, target = make(Eagle3Config(steps=STEPS, **options), vocab, images=images)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in draft.parameters():
            if parameter.ndim == 2:
                parameter.mul_(2)
            else:
                parameter.add_(torch.rand(parameter.shape, generator=generator))
    return algorithm, draft, target


def states_of_a_text(length: int) -> Features:
    """Made up, one per slot; what follows from them is all that matters here."""
    generator = torch.Generator().manual_seed(11)
    states = {layer: torch.randn(1, length, HIDDEN, generator=generator) for layer in (2, 6, 9)}
    return Features(states, torch.randn(1, length, HIDDEN, generator=generator))


def merged(target: MatrixTarget, text: list[int], features: Features) -> Features:
    """With the embeddings of a text whose image has others than its ids say."""
    embeds = target.embed(torch.tensor([text]))
    embeds[:, IMAGE] = torch.randn(embeds[:, IMAGE].shape, generator=torch.Generator().manual_seed(5))
    return replace(features.select(slice(0, len(text))), embeds=embeds)


def axes(length: int) -> Tensor:
    """[3, length] positions of a text with an image of one row; what follows goes on from the highest of them."""
    positions = torch.arange(length).repeat(3, 1)
    positions[:, IMAGE] = torch.tensor([[1, 1, 1], [2, 4, 2], [1, 5, 7]])
    positions[:, IMAGE.stop :] += 8 - IMAGE.stop
    return positions


def verified(target: MatrixTarget, text: list[int], features: Features, start: int, images: bool) -> Verified:
    """The slots from `start` on that have been read of a text whose last token was just emitted."""
    end, rotary = len(text) - 1, None
    if images:
        features, rotary = merged(target, text, features), axes(len(text))[:, start:end]
    return Verified(torch.tensor(text[start:]), features.select(slice(start, end)), start, rotary)


def losses_in_training(
    algorithm: Eagle3,
    draft: Eagle3Draft,
    target: MatrixTarget,
    text: list[int],
    features: Features,
    slot: int,
    images: bool = False,
) -> list[float]:
    """The loss of each step's guess from `slot`. The text stands behind another document."""
    if images:
        features = merged(target, text, features)
    found = []
    for k in range(STEPS):
        # Cut where step k's guess is the last that can be supervised, and `slot` the only place for it.
        length = slot + 3 + k
        ids = torch.tensor([[9] * BEFORE + text[:length]])
        positions = torch.tensor([[*range(BEFORE), *range(length)]])
        documents = torch.tensor([[0] * BEFORE + [1] * length])
        mask = (documents == 1) & (positions > slot)
        if images:
            positions = torch.cat([torch.arange(BEFORE).expand(3, -1), axes(length)], dim=1).unsqueeze(1)
        batch = Batch(ids, positions, mask, documents)
        packed = features.select(slice(0, length)).map(lambda x: F.pad(x, (0, 0, BEFORE, 0), value=1.0))
        output = algorithm.training_step(draft, batch, packed, target, torch.ones(STEPS))
        metric = output.metrics[f"loss/{k + 1}"]
        assert metric.count == 1
        found.append(float(metric.sum))
    return found


def losses_of_proposal(
    draft: Eagle3Draft, target: MatrixTarget, probs: Tensor, features: Features, slot: int
) -> list[float]:
    """Cross-entropy of the proposal's own distributions against the target's over the draft vocabulary."""
    assert features.last_hidden is not None
    ids = torch.arange(VOCAB) if draft.draft_ids is None else draft.draft_ids
    teacher = target.logits(features.last_hidden[0, slot + 1 : slot + 1 + STEPS])[:, ids].softmax(-1)
    return (-(teacher * probs[:, ids].log()).sum(-1)).tolist()


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("implementation", ["plain", "fast"])
@pytest.mark.parametrize(("images", "options"), CASES)
@pytest.mark.parametrize("vocab", [None, 20])
@torch.no_grad()
def test_distributions_of_a_proposal_are_those_of_the_training_steps_on_the_text_it_makes(
    rounds: list[int], implementation: Any, images: bool, options: dict[str, Any], vocab: int | None
) -> None:
    algorithm, draft, target = built(vocab, images, implementation=implementation, **options)
    features = states_of_a_text(64)
    sampling = Sampling(temperature=1.0, generator=torch.Generator().manual_seed(3))
    text = [3, 1, 4, 15, 9]
    drafter = algorithm.drafter(draft, target)
    drafter.begin(verified(target, text, features, 0, images))
    for accepted in [*rounds, 0]:
        proposal = drafter.propose(STEPS, sampling)
        assert proposal.probs is not None
        slot = len(text) - 2
        decoded = losses_of_proposal(draft, target, proposal.probs, features, slot)
        trained = losses_in_training(algorithm, draft, target, text + proposal.tokens.tolist(), features, slot, images)
        assert decoded == pytest.approx(trained, rel=1e-5, abs=1e-5)

        start = len(text) - 1
        text += [*proposal.tokens[:accepted].tolist(), 40 + len(text) % 7]
        drafter.accept(verified(target, text, features, start, images))


@pytest.mark.parametrize(("images", "options"), [case for case in CASES if "num_layers" not in case[1]])
@pytest.mark.parametrize("vocab", [None, 20])
@torch.no_grad()
def test_greedy_tokens_are_the_top_ones_of_the_formulas_on_the_text_they_make(
    images: bool, options: dict[str, Any], vocab: int | None
) -> None:
    algorithm, draft, target = built(vocab, images, **options)
    features, text = states_of_a_text(16), [3, 1, 4, 15, 9, 2, 6, 5, 35, 8]
    drafter = algorithm.drafter(draft, target)
    drafter.begin(verified(target, text, features, 0, images))
    proposal = drafter.propose(6, Sampling())
    made = text + proposal.tokens.tolist()
    embeds = merged(target, made, features).embeds if images else None
    positions = axes(len(made)) if images and options.get("positions") != "sequential" else None
    captured, read = features.stacked()[0], None if embeds is None else embeds[0]
    logits, _ = chain(draft, torch.tensor(made), captured, slot=8, steps=6, embeds=read, positions=positions)
    top = logits.argmax(-1)
    assert proposal.probs is None
    assert proposal.tokens.tolist() == (top if draft.draft_ids is None else draft.draft_ids[top]).tolist()


@pytest.mark.parametrize("options", VARIANTS)
@torch.no_grad()
def test_reading_a_text_in_parts_or_anew_proposes_the_same(options: dict[str, Any]) -> None:
    algorithm, draft, target = built(20, **options)
    features, ids = states_of_a_text(300), torch.arange(301) * 7 % VOCAB
    sampling = Sampling(temperature=1.0)
    whole, parts = algorithm.drafter(draft, target), algorithm.drafter(draft, target)
    whole.begin(Verified(ids, features, start=0))
    parts.begin(Verified(ids[:20], features.select(slice(0, 19)), start=0))
    parts.begin(Verified(ids[:4], features.select(slice(0, 3)), start=0))
    for start, end in ((3, 4), (4, 255), (255, 257), (257, 300)):
        parts.propose(STEPS, sampling)
        parts.accept(Verified(ids[start : end + 1], features.select(slice(start, end)), start))
    first, second = (d.propose(1, sampling).probs for d in (whole, parts))
    assert first is not None
    assert second is not None
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_temperature_divides_the_logits_and_tokens_outside_the_draft_vocabulary_have_no_probability() -> None:
    algorithm, draft, target = built(20)
    features, text = states_of_a_text(4), torch.tensor([3, 1, 4, 15, 9])
    drafter = algorithm.drafter(draft, target)
    drafter.begin(Verified(text, features, start=0))
    logits, _ = chain(draft, text, features.stacked()[0], slot=3, steps=1)
    proposal = drafter.propose(1, Sampling(temperature=0.5))
    assert proposal.probs is not None
    assert draft.draft_ids is not None
    expected = torch.zeros(VOCAB)
    expected[draft.draft_ids] = (logits[0] / 0.5).softmax(-1).float()
    torch.testing.assert_close(proposal.probs[0], expected, rtol=1e-5, atol=1e-5)
    assert proposal.tokens[0] in draft.draft_ids
