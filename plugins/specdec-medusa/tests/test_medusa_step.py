"""The fast step equals the plain one; the plain one equals sums written out by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from medusa_support import HeadTarget, features_of, logits_by_hand, make, packed
from pydantic import ValidationError
from torch import Tensor

from specdec_core.algorithm.base import StepOutput
from specdec_core.capture.features import Features
from specdec_core.data.batch import Batch
from specdec_medusa.config import MedusaConfig
from specdec_medusa.model import MedusaDraft
from specdec_medusa.supervision import supervised_slots

IMPLEMENTATIONS: list[Any] = ["plain", "fast"]
BATCH = packed([["..xxxx", ".xx", "x"], ["xxxxx", ".x.xx.xxx"], ["...."], []], length=14)

options_strategy = st.fixed_dictionaries(
    {
        "heads": st.integers(1, 5),
        "layers": st.integers(1, 3),
        "decay": st.sampled_from([0.8, 1.0]),
        "loss": st.sampled_from(["tokens", "target"]),
        "mask": st.sampled_from(["strict", "predicted"]),
    }
)
documents = st.lists(st.text(".xx", min_size=1, max_size=12), max_size=4)


def run(options: MedusaConfig, vocab: int | None, batch: Batch) -> tuple[StepOutput, dict[str, Tensor]]:
    algorithm, draft, target = make(options, vocab)
    features = features_of(batch)
    output = algorithm.training_step(draft, batch, features, target, algorithm.denominator(draft, batch, features))
    output.loss.backward()
    return output, {n: p.grad for n, p in draft.named_parameters() if p.grad is not None}


@settings(max_examples=80, deadline=None)
@given(
    options_strategy, st.sampled_from([None, 20, 52]), st.lists(documents, min_size=1, max_size=3), st.integers(0, 99)
)
def test_fast_equals_plain(options: dict[str, Any], vocab: int | None, rows: list[list[str]], seed: int) -> None:
    batch = packed(rows, length=max(4, *(sum(map(len, row)) for row in rows)) + seed % 3, seed=seed)
    plain, plain_grads = run(MedusaConfig(**options, implementation="plain"), vocab, batch)
    fast, fast_grads = run(MedusaConfig(**options, implementation="fast"), vocab, batch)
    assert math.isclose(fast.loss.item(), plain.loss.item(), rel_tol=1e-5, abs_tol=1e-5)
    assert fast_grads.keys() == plain_grads.keys()
    for name, expected in plain_grads.items():
        torch.testing.assert_close(fast_grads[name], expected, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert fast.metrics.keys() == plain.metrics.keys()
    for name, expected in plain.metrics.items():
        torch.testing.assert_close(fast.metrics[name].sum, expected.sum, rtol=1e-4, atol=1e-4)
        assert fast.metrics[name].count == expected.count, name


def test_chunks_of_slots_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(MedusaConfig(), 20, BATCH)
    monkeypatch.setattr("specdec_medusa.fast._SLOTS", 2)
    parts = run(MedusaConfig(), 20, BATCH)
    assert parts[0].loss.item() == pytest.approx(whole[0].loss.item(), rel=1e-6)
    for name, expected in whole[1].items():
        torch.testing.assert_close(parts[1][name], expected, rtol=1e-5, atol=1e-6)


# Which slots


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("strict", [".xxx..x....", ".xx........", ".x........."]),
        ("predicted", ["xxxx..x....", "xxx........", "xx........."]),
    ],
)
def test_each_mask_supervises_the_slots_that_its_convention_names(mask: Any, expected: list[str]) -> None:
    found = supervised_slots(packed([["..xxxx", ".xx"]], length=11), MedusaConfig(mask=mask, heads=3))[:, 0]
    assert ["".join("x" if slot else "." for slot in row) for row in found] == expected


def test_heads_that_reach_beyond_the_row_learn_nothing() -> None:
    for mask in ("strict", "predicted"):
        found = supervised_slots(packed([["xxxx"]], length=4), MedusaConfig(mask=mask, heads=9))  # type: ignore[arg-type]
        assert found.sum((1, 2)).tolist() == [2, 1, *[0] * 7]


def supervised_by_hand(batch: Batch, options: MedusaConfig) -> Iterator[tuple[int, int, int]]:
    """(head, row, slot) of what is supervised."""
    rows, length = batch.ids.shape
    for head in range(options.heads):
        for r in range(rows):
            learned, document = batch.loss_mask[r].tolist(), batch.document_ids[r].tolist()
            for t in range(length - 2 - head):
                end = t + 2 + head
                asked = range(t + 1 if options.mask == "strict" else end, end + 1)
                inside = document[t] != -1 and len(set(document[t : end + 1])) == 1
                if inside and all(learned[i] for i in asked):
                    yield head, r, t


def by_hand(
    draft: MedusaDraft, batch: Batch, features: Features, target: HeadTarget, options: MedusaConfig
) -> tuple[list[int], float, dict[str, list[float]]]:
    """The denominators, the loss, and each metric's sum by head."""
    assert features.last_hidden is not None
    ids = torch.arange(target.facts.vocab_size) if draft.draft_ids is None else draft.draft_ids
    losses: list[list[float]] = [[] for _ in range(options.heads)]
    sums = {"accuracy": [0.0] * options.heads, "acceptance": [0.0] * options.heads}
    for head, r, t in supervised_by_hand(batch, options):
        logits = logits_by_hand(draft, features.last_hidden[r, t])[head]
        full = target.head.double() @ features.last_hidden[r, t + 1 + head].double()
        q = torch.zeros_like(full).index_copy(0, ids, logits.softmax(0))
        sums["accuracy"][head] += int(ids[logits.argmax()]) == int(full.argmax())
        sums["acceptance"][head] += float(1 - 0.5 * (full.softmax(0) - q).abs().sum())
        token = int(batch.ids[r, t + 2 + head])
        if options.loss == "target":
            losses[head].append(float(-(full[ids].softmax(0) * logits.log_softmax(0)).sum()))
        elif token in ids.tolist():
            losses[head].append(-float(q[token].log()))
    total = sum(options.decay ** (i + 1) * sum(mine) / len(mine) for i, mine in enumerate(losses) if mine)
    return [len(mine) for mine in losses], total, {**sums, "loss": [sum(mine) for mine in losses]}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("vocab", [None, 20])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss": "target"},
        {"mask": "predicted", "layers": 2},
        {"loss": "target", "mask": "predicted", "decay": 1.0},
        {"preset": "medusa-1"},
    ],
)
def test_loss_denominators_and_metrics_equal_sums_by_hand(
    implementation: Any, vocab: int | None, changes: dict[str, Any]
) -> None:
    options = MedusaConfig(**{"heads": 3, **changes}, implementation=implementation)
    algorithm, draft, target = make(options, vocab)
    features = features_of(BATCH)
    denominators, loss, sums = by_hand(draft, BATCH, features, target, options)
    found = algorithm.denominator(draft, BATCH, features)
    assert found.tolist() == denominators
    output = algorithm.training_step(draft, BATCH, features, target, found)
    assert output.loss.item() == pytest.approx(loss, rel=1e-5)
    for name, by_head in sums.items():
        assert [float(output.metrics[f"{name}/{i + 1}"].sum) for i in range(options.heads)] == pytest.approx(
            by_head, rel=1e-4, abs=1e-5
        )
    counts = torch.tensor([head for head, _, _ in supervised_by_hand(BATCH, options)]).bincount(minlength=options.heads)
    assert [int(output.metrics[f"accuracy/{i + 1}"].count) for i in range(options.heads)] == counts.tolist()


def test_the_simulated_acceptance_length_replays_the_first_guesses() -> None:
    algorithm, draft, target = make(MedusaConfig(heads=2), None)
    algorithm.init_draft(draft, target)
    with torch.no_grad():
        for parameter in draft.blocks.parameters():
            parameter.zero_()
    batch = packed([["x" * 12]], length=12)
    # Equal states make every head right, so that a cycle emits two guesses and the target's own token.
    same = Features(last_hidden=features_of(batch).last_hidden[:, :1].expand(1, 12, -1))  # type: ignore[index]
    found = algorithm.training_step(draft, batch, same, target, torch.ones(2)).metrics["acceptance_length"]
    assert (int(found.sum), int(found.count)) == (9, 3)


# Sums


@pytest.mark.parametrize("loss", ["tokens", "target"])
def test_losses_of_micro_batches_add_up_under_the_common_denominator(loss: Any) -> None:
    algorithm, draft, target = make(MedusaConfig(heads=3, loss=loss), 20)
    features = features_of(BATCH)
    parts = [
        (
            Batch(*(x[rows] for x in (BATCH.ids, BATCH.positions, BATCH.loss_mask, BATCH.document_ids))),
            features.map(lambda x, rows=rows: x[rows]),  # type: ignore[misc]
        )
        for rows in (slice(0, 1), slice(1, 4))
    ]
    whole = algorithm.denominator(draft, BATCH, features)
    torch.testing.assert_close(sum(algorithm.denominator(draft, *part) for part in parts), whole)
    losses = [algorithm.training_step(draft, *part, target, whole).loss for part in parts]
    torch.testing.assert_close(sum(losses), algorithm.training_step(draft, BATCH, features, target, whole).loss)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_batch_without_supervision_has_loss_zero_and_no_gradient(implementation: Any) -> None:
    batch = packed([["....", "x"]], length=6)
    output, grads = run(MedusaConfig(implementation=implementation), 20, batch)
    assert output.loss.item() == 0
    assert all(bool((grad == 0).all()) for grad in grads.values())


def test_one_repeated_batch_is_learned() -> None:
    algorithm, draft, target = make(MedusaConfig(heads=3), None)
    algorithm.init_draft(draft, target)
    batch = packed([["x" * 20]], length=20)
    features = features_of(batch)
    optimizer = torch.optim.AdamW(algorithm.parameter_groups(draft, 0.0), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        output = algorithm.training_step(draft, batch, features, target, algorithm.denominator(draft, batch, features))
        output.loss.backward()
        optimizer.step()
    assert all(float(output.metrics[f"loss/{i}"].sum / output.metrics[f"loss/{i}"].count) < 0.1 for i in (1, 2, 3))


# Options


def test_head_weights_decay_from_the_decay_itself() -> None:
    assert MedusaConfig(heads=3, decay=0.5).head_weights == [0.5, 0.25, 0.125]


def test_a_preset_sets_its_options_and_those_given_win() -> None:
    paper = {"heads": 5, "layers": 1, "decay": 0.8, "loss": "tokens", "mask": "predicted", "lr": 1e-3}
    assert MedusaConfig(preset="medusa-1").model_dump() == {
        **MedusaConfig().model_dump(),
        **paper,
        "preset": "medusa-1",
    }
    assert MedusaConfig(preset="medusa-1", heads=2).heads == 2


@pytest.mark.parametrize(
    "wrong",
    [{"preset": "medusa"}, {"head": 3}, {"heads": 0}, {"layers": 0}, {"decay": 0}, {"loss": "kl"}, {"tree": "bush"},
     {"tree": 0}, {"tree": True}, {"tree_accuracy": [0.5]}, {"heads": 1, "tree_accuracy": [1.0]}],
)  # fmt: skip
def test_unknown_options_and_values_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MedusaConfig(**wrong)
