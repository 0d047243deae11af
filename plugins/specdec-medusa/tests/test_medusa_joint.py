"""Medusa-2: the loss of a target that learns with its heads, against sums by hand, and its options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from medusa_support import features_of, make, packed
from pydantic import ValidationError
from torch import Tensor

from specdec_core.algorithm.base import StepOutput
from specdec_core.capture.features import Features
from specdec_core.config.run import TrainSection
from specdec_core.data.batch import Batch
from specdec_core.engine.base import StepModule
from specdec_core.engine.config import TorchEngineConfig
from specdec_core.engine.torch_engine import TorchEngine
from specdec_medusa.config import MedusaConfig
from specdec_medusa.joint import target_slots

BATCH = packed([["..xxxx", ".xx", "x"], ["xxxxx", ".x.xx.xxx"], ["...."], []], length=14)
documents = st.lists(st.text(".xx", min_size=1, max_size=12), max_size=4)


def run(options: MedusaConfig, vocab: int | None, batch: Batch) -> tuple[StepOutput, dict[str, Tensor]]:
    """The step's output, and its gradients: the draft's, the target's head's and its hidden states'."""
    algorithm, draft, target = make(options, vocab)
    target.head.requires_grad_()
    features = features_of(batch).map(lambda x: x.requires_grad_())
    assert features.last_hidden is not None
    denominator = algorithm.denominator(draft, batch, Features())
    output = algorithm.training_step(draft, batch, features, target, denominator)
    leaves = {**dict(draft.named_parameters()), "target's head": target.head, "last_hidden": features.last_hidden}
    found = torch.autograd.grad(output.loss, list(leaves.values()))
    return output, dict(zip(leaves, found, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "heads": st.integers(1, 4),
            "decay": st.sampled_from([0.8, 1.0]),
            "loss": st.sampled_from(["tokens", "target"]),
            "mask": st.sampled_from(["strict", "predicted"]),
            "heads_weight": st.sampled_from([0.2, 1.0]),
        }
    ),
    st.sampled_from([None, 20]),
    st.lists(documents, min_size=1, max_size=3),
    st.integers(0, 99),
)
def test_fast_equals_plain(options: dict[str, Any], vocab: int | None, rows: list[list[str]], seed: int) -> None:
    batch = packed(rows, length=max(4, *(sum(map(len, row)) for row in rows)) + seed % 3, seed=seed)
    plain, plain_grads = run(MedusaConfig(**options, train_target=True, implementation="plain"), vocab, batch)
    fast, fast_grads = run(MedusaConfig(**options, train_target=True, implementation="fast"), vocab, batch)
    assert fast.loss.item() == pytest.approx(plain.loss.item(), rel=1e-5, abs=1e-5)
    for name, expected in plain_grads.items():
        torch.testing.assert_close(fast_grads[name], expected, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert fast.metrics.keys() == plain.metrics.keys()
    for name in ("target/loss", "target/accuracy"):
        torch.testing.assert_close(fast.metrics[name].sum, plain.metrics[name].sum, rtol=1e-4, atol=1e-4)
        assert fast.metrics[name].count == plain.metrics[name].count


@pytest.mark.parametrize("implementation", ["plain", "fast"])
def test_the_joint_loss_is_the_targets_own_and_the_weighted_heads(implementation: Any) -> None:
    options = {"heads": 3, "implementation": implementation}
    joint = MedusaConfig(**options, train_target=True, heads_weight=0.3)
    algorithm, draft, target = make(joint, None)
    features = features_of(BATCH)
    assert features.last_hidden is not None
    own, right, count = 0.0, 0, 0
    for r in range(4):
        for t in range(13):
            if BATCH.loss_mask[r, t + 1] and BATCH.document_ids[r, t + 1] == BATCH.document_ids[r, t]:
                logits = target.head.double() @ features.last_hidden[r, t].double()
                own -= float(logits.log_softmax(0)[BATCH.ids[r, t + 1]])
                right += int(logits.argmax()) == int(BATCH.ids[r, t + 1])
                count += 1
    denominator = algorithm.denominator(draft, BATCH, Features())
    assert int(denominator[-1]) == count
    output = algorithm.training_step(draft, BATCH, features, target, denominator)
    frozen, draft, _ = make(MedusaConfig(**options), None)
    heads = frozen.training_step(draft, BATCH, features, target, denominator[:-1])
    assert output.loss.item() == pytest.approx(own / count + 0.3 * heads.loss.item(), rel=1e-5)
    assert float(output.metrics["target/loss"].sum) == pytest.approx(own, rel=1e-5)
    assert (int(output.metrics["target/accuracy"].sum), int(output.metrics["target/accuracy"].count)) == (right, count)
    assert output.metrics.keys() - heads.metrics.keys() == {"target/loss", "target/accuracy"}


def test_the_target_learns_every_token_of_the_assistant_but_a_documents_first() -> None:
    found = target_slots(packed([["..xxxx", ".xx", "x"]], length=12))
    assert "".join("x" if slot else "." for slot in found[0]) == ".xxxx.xx...."


@pytest.mark.parametrize("implementation", ["plain", "fast"])
def test_a_batch_without_supervision_has_loss_zero_and_no_gradient(implementation: Any) -> None:
    batch = packed([["....", "x"]], length=6)
    output, grads = run(MedusaConfig(train_target=True, implementation=implementation), 20, batch)
    assert output.loss.item() == 0
    assert all(bool((grad == 0).all()) for grad in grads.values())


def test_the_preset_trains_the_target_after_the_heads() -> None:
    algorithm = make(MedusaConfig(preset="medusa-2"), None)[0]
    assert (algorithm.trains_target, algorithm.target_group()) == (True, {"lr": 1e-5, "starts_at": 0.5})
    assert algorithm.options.model_dump() == {
        **MedusaConfig(preset="medusa-1").model_dump(),
        "preset": "medusa-2",
        "train_target": True,
    }
    assert not make(MedusaConfig(preset="medusa-1"), None)[0].trains_target


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"preset": "medusa-1"}, [1e-3, 1e-3]),
        ({"preset": "medusa-2"}, [1e-3, 1e-3, 1e-5, 1e-5]),
        ({"preset": "medusa-1", "lr": 5e-4}, [5e-4, 5e-4]),
        ({"preset": "medusa-1", "lr": None}, [7e-4, 7e-4]),
        ({}, [7e-4, 7e-4]),
    ],
)
def test_heads_and_target_learn_at_rates_of_their_own(options: dict[str, Any], rates: list[float]) -> None:
    """Of matrices and vectors of the heads, then of the target, where train.lr is 7e-4."""
    algorithm, draft, target = make(MedusaConfig(**options), None)
    weights = torch.nn.Linear(2, 2) if algorithm.trains_target else None
    engine = TorchEngine(TorchEngineConfig(device="cpu"))
    engine.start()
    engine.prepare(StepModule(algorithm, draft, target, weights), TrainSection(lr=7e-4, weight_decay=0.1), 10)
    groups = engine.optimizer.param_groups
    assert [group["peak_lr"] for group in groups] == rates
    assert [group["weight_decay"] for group in groups[:2]] == [0.1, 0.0]


@pytest.mark.parametrize("key", ["target_lr", "heads_weight", "heads_first"])
def test_an_option_of_a_target_that_learns_is_refused_for_a_frozen_one(key: str) -> None:
    with pytest.raises(ValidationError, match=rf"(?s){key}.*only a target that learns has it; set train_target = true"):
        MedusaConfig.model_validate({key: 0.3})
    assert MedusaConfig.model_validate({key: 0.3, "train_target": True}).train_target
    assert MedusaConfig.model_validate(MedusaConfig().model_dump()) == MedusaConfig()


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"target_lr": 0.0}, {"heads_weight": 0.0}, {"heads_first": 1.0}])
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        MedusaConfig.model_validate({**wrong, "train_target": True})
