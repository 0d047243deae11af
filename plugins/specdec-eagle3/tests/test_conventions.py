"""Which slots are supervised, what losses are divided by, and the loss itself, against loops written out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest
import torch
from eagle3_support import HIDDEN, VOCAB, MatrixTarget, make, random_batch
from eagle3_twin import chain
from pydantic import ValidationError
from torch import Tensor

from specdec_core.capture.features import Features
from specdec_core.data.batch import Batch
from specdec_eagle3.algorithm import Eagle3
from specdec_eagle3.config import Eagle3Config
from specdec_eagle3.model import Eagle3Draft
from specdec_eagle3.supervision import supervised_slots

MASKS, REDUCTIONS = ("strict", "speculators", "specforge"), ("token", "sequence", "slot")


def packed(rows: list[list[str]], length: int) -> Batch:
    """Documents written as a letter per token: x is the assistant's, anything else is not."""
    ids = torch.randint(0, VOCAB, (len(rows), length), generator=torch.Generator().manual_seed(1))
    positions, documents = torch.zeros_like(ids), torch.full_like(ids, -1)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for r, row in enumerate(rows):
        slot = 0
        for number, document in enumerate(row):
            run = slice(slot, slot + len(document))
            positions[r, run], documents[r, run] = torch.arange(len(document)), number
            mask[r, run] = torch.tensor([letter == "x" for letter in document])
            slot += len(document)
    return Batch(ids, positions, mask, documents)


BATCH = packed([["..xxxx", ".xx", "x"], ["xxxxx", ".x.xx.xxx"], ["...."], []], length=14)


def features_of(batch: Batch) -> Features:
    generator = torch.Generator().manual_seed(2)
    states = {k: torch.randn(*batch.ids.shape, HIDDEN, generator=generator) for k in (9, 2, 6)}
    last = torch.randn(*batch.ids.shape, HIDDEN, generator=generator)
    return Features(states, last, argmax=MatrixTarget().logits(last).argmax(-1))


def letters(mask: Tensor) -> list[str]:
    return ["".join("x" if slot else "." for slot in row) for row in mask]


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("strict", [".xxx..x....", ".xx........", ".x........."]),
        ("speculators", [".xxxx.xx...", "xxxx..x....", "xxx........"]),
        ("specforge", ["..xxx..x...", ".xxx..x....", "xxx........"]),
    ],
)
def test_each_mask_supervises_the_slots_that_its_convention_names(mask: Any, expected: list[str]) -> None:
    batch = packed([["..xxxx", ".xx"]], length=11)
    assert letters(supervised_slots(batch, Eagle3Config(mask=mask, steps=3))[:, 0]) == expected


def test_steps_that_reach_beyond_the_row_supervise_nothing() -> None:
    for mask in MASKS:
        found = supervised_slots(packed([["xxxx"]], length=4), Eagle3Config(mask=mask, steps=9))  # type: ignore[arg-type]
        assert found.sum((1, 2)).tolist()[4:] == [0] * 5


def supervised_by_hand(batch: Batch, options: Eagle3Config) -> Iterator[tuple[int, int, int]]:
    """(k, row, slot) of what is supervised."""
    rows, length = batch.ids.shape
    for k in range(options.steps):
        for r in range(rows):
            learned, document = batch.loss_mask[r].tolist(), batch.document_ids[r].tolist()
            for t in range(length):
                if options.mask == "strict":
                    asked, end = range(t + 1, t + 3 + k), t + 2 + k
                elif options.mask == "speculators":
                    asked, end = range(t + 1 + k, t + 2 + k), t + 1 + k
                else:
                    asked, end = range(t + k, t + 1 + k), t + 1 + k
                inside = end < length and document[t] != -1 and len(set(document[t : end + 1])) == 1
                if inside and all(learned[i] for i in asked):
                    yield k, r, t


def loss_by_hand(
    draft: Eagle3Draft, batch: Batch, features: Features, target: MatrixTarget, options: Eagle3Config
) -> tuple[list[float], float]:
    """The denominators and the loss."""
    assert features.last_hidden is not None
    captured, last = features.stacked(), features.last_hidden.double()
    ids = torch.arange(VOCAB) if draft.draft_ids is None else draft.draft_ids
    counted = []
    for k, r, t in supervised_by_hand(batch, options):
        full = target.head.double() @ last[r, t + 1 + k]
        if options.filter_teacher and int(full.argmax()) not in ids.tolist():
            continue
        start = t - int(batch.positions[r, t])
        logits, states = chain(draft, batch.ids[r, start:], captured[r, start:], t - start, k + 1)
        p, log_q = full[ids].softmax(0), logits[k].log_softmax(0)
        value = float(-(p * log_q).sum())
        if options.objective == "kl":
            value += float((p * p.log()).sum())
        gap = (states[k] - last[r, t + 1 + k]).abs()
        value += options.regression * float(torch.where(gap < 1, gap**2 / 2, gap - 0.5).mean())
        counted.append((k, (r, int(batch.document_ids[r, t])), value))

    denominators, loss = [], 0.0
    for k in range(options.steps):
        mine = sorted((document, value) for step, document, value in counted if step == k)
        if options.reduction == "sequence":
            groups = [[value for _, value in group] for _, group in groupby(mine, key=lambda pair: pair[0])]
            total, count = sum(sum(group) / len(group) for group in groups), len(groups)
        else:
            total, count = sum(value for _, value in mine), len(mine)
        denominators.append(float(batch.ids.numel() if options.reduction == "slot" else count))
        if denominators[-1]:
            loss += options.step_decay**k * total / denominators[-1]
    return denominators, loss


def check(algorithm: Eagle3, draft: Eagle3Draft, target: MatrixTarget, batch: Batch, features: Features) -> None:
    denominators, loss = loss_by_hand(draft, batch, features, target, algorithm.options)
    found = algorithm.denominator(draft, batch, features)
    assert found.tolist() == pytest.approx(denominators)
    output = algorithm.training_step(draft, batch, features, target, found)
    assert output.loss.item() == pytest.approx(loss, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("implementation", ["plain", "fast"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("filter_teacher", [False, True])
def test_loss_and_denominators_equal_sums_over_slots_and_steps(
    implementation: Any, reduction: Any, mask: Any, filter_teacher: bool
) -> None:
    options = Eagle3Config(
        steps=3, mask=mask, reduction=reduction, filter_teacher=filter_teacher, implementation=implementation
    )
    check(*make(options, 20), BATCH, features_of(BATCH))


@pytest.mark.parametrize("implementation", ["plain", "fast"])
@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "kl", "step_decay": 0.5},
        {"regression": 0.7},
        {"norm_output": True, "fc_norm": True},
        {"norm_before_residual": True},
        {"preset": "specforge", "steps": 4},
        {"preset": "speculators"},
    ],
)
@pytest.mark.parametrize("vocab", [None, 20])
def test_loss_of_every_other_option_equals_the_sum_by_hand(
    implementation: Any, changes: dict[str, Any], vocab: int | None
) -> None:
    algorithm, draft, target = make(Eagle3Config(**{"steps": 3, **changes}, implementation=implementation), vocab)
    with torch.no_grad():
        for parameter in draft.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.rand_like(parameter))
    check(algorithm, draft, target, *random_batch(3, rows=2, length=24))


def test_filter_teacher_drops_a_slot_for_what_its_own_teacher_says() -> None:
    batch = packed([["xxxxxx"]], length=6)
    algorithm, draft, _ = make(Eagle3Config(steps=2, filter_teacher=True), 20)
    assert draft.in_vocab is not None
    sayable, other = int(draft.in_vocab.nonzero()[0]), int((~draft.in_vocab).nonzero()[0])
    said = torch.full((1, 6), sayable)
    said[0, 2] = other
    features = replace(features_of(batch), argmax=said)
    # Strictly supervised: slots 0 to 3 at the first step, 0 to 2 at the second; slot 2 teaches 1, then 0.
    assert algorithm.denominator(draft, batch, features).tolist() == [3, 2]


def test_filter_teacher_changes_nothing_with_the_whole_vocabulary() -> None:
    algorithm, draft, _ = make(Eagle3Config(filter_teacher=True), None)
    plain, _, _ = make(Eagle3Config(), None)
    features = features_of(BATCH)
    assert torch.equal(algorithm.denominator(draft, BATCH, features), plain.denominator(draft, BATCH, features))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_losses_of_micro_batches_add_up_under_the_common_denominator(reduction: Any) -> None:
    algorithm, draft, target = make(Eagle3Config(steps=3, reduction=reduction), 20)
    features = features_of(BATCH)
    parts = [
        (
            Batch(*(x[rows] for x in (BATCH.ids, BATCH.positions, BATCH.loss_mask, BATCH.document_ids))),
            features.map(lambda x, rows=rows: x[rows]),  # type: ignore[misc]
        )
        for rows in (slice(0, 1), slice(1, 4))
    ]
    shares = [algorithm.denominator(draft, *part) for part in parts]
    whole = algorithm.denominator(draft, BATCH, features)
    torch.testing.assert_close(sum(shares), whole)
    losses = [algorithm.training_step(draft, *part, target, whole).loss for part in parts]
    torch.testing.assert_close(sum(losses), algorithm.training_step(draft, BATCH, features, target, whole).loss)


def test_a_batch_without_supervision_has_loss_zero_and_finite_gradients() -> None:
    batch = packed([["....", "x"]], length=6)
    for implementation in ("plain", "fast"):
        options = Eagle3Config(implementation=implementation)  # type: ignore[arg-type]
        algorithm, draft, target = make(options, 20)
        found = algorithm.denominator(draft, batch, features_of(batch))
        loss = algorithm.training_step(draft, batch, features_of(batch), target, found).loss
        loss.backward()
        assert found.tolist() == [0.0] * 7
        assert loss.item() == 0
        assert all(p.grad is None or bool((p.grad == 0).all()) for p in draft.parameters())


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("default", {}),
        ("paper", {"steps": 7, "step_decay": 0.8}),
        ("eagle3.1", {"fc_norm": True, "norm_output": True}),
        (
            "specforge",
            {"steps": 7, "step_decay": 0.8, "mask": "specforge", "filter_teacher": True, "reduction": "slot"},
        ),
        (
            "speculators",
            {
                "steps": 3,
                "step_decay": 1.0,
                "mask": "speculators",
                "objective": "kl",
                "head": "frozen",
                "norm_before_residual": True,
            },
        ),
    ],
)
def test_a_preset_sets_its_options_and_leaves_the_others_at_their_defaults(preset: Any, expected: Any) -> None:
    assert Eagle3Config(preset=preset).model_dump() == {**Eagle3Config().model_dump(), **expected, "preset": preset}


@pytest.mark.parametrize(
    ("preset", "given"),
    [
        ("speculators", {"steps": 5, "objective": "cross_entropy"}),
        ("specforge", {"mask": "strict", "filter_teacher": False}),
        ("eagle3.1", {"norm_output": False}),
    ],
)
def test_explicit_options_win_over_the_preset(preset: Any, given: Any) -> None:
    found = Eagle3Config(preset=preset, **given)
    assert found.model_dump() == {**Eagle3Config(preset=preset).model_dump(), **given}


def test_step_weights_decay_from_one() -> None:
    assert Eagle3Config(steps=3, step_decay=0.5).step_weights == [1.0, 0.5, 0.25]


@pytest.mark.parametrize("wrong", [{"preset": "peper"}, {"stepz": 3}, {"steps": 0}, {"step_decay": 0}, {"mask": "no"}])
def test_unknown_options_and_values_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Eagle3Config(**wrong)
