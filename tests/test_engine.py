from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor
from toy_draft import Toy, ToyDraft
from toy_plugin import ToyConfig

from specdec_core.capture.features import Features
from specdec_core.config.run import TrainSection
from specdec_core.data.batch import Batch
from specdec_core.engine.base import EngineState, NonFinite, StepModule
from specdec_core.engine.config import TorchEngineConfig
from specdec_core.engine.schedule import lr_factor
from specdec_core.engine.torch_engine import TorchEngine
from specdec_core.errors import UserError
from specdec_core.target.base import Target

HIDDEN, VOCAB, SLOTS = 8, 11, 12
Pair = tuple[Batch, Features]
# The tests' target gives only what the toy asks of it: nothing.
TARGET = cast(Target, SimpleNamespace(device="cpu"))


def rows(count: int, seed: int = 0, supervised: float = 0.6) -> list[Pair]:
    """Rows of unlike share of supervised tokens, one by one."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(count):
        ids = torch.randint(VOCAB, (1, SLOTS), generator=generator)
        mask = torch.rand(1, SLOTS, generator=generator) < supervised * (index + 1) / count
        documents = (torch.arange(SLOTS) >= 7).long()[None]
        hidden = torch.randn(1, SLOTS, HIDDEN, generator=generator)
        made.append((Batch(ids, torch.arange(SLOTS)[None], mask, documents), Features(last_hidden=hidden)))
    return made


def joined(pairs: Sequence[Pair]) -> Pair:
    """One micro-batch of several rows."""
    batches, features = zip(*pairs, strict=True)
    fields = ("ids", "positions", "loss_mask", "document_ids")
    batch = Batch(*(torch.cat([getattr(b, name) for b in batches]) for name in fields))
    return batch, Features(last_hidden=torch.cat([f.last_hidden for f in features]))


def engine_for(draft: ToyDraft, total_steps: int = 10, toy: ToyConfig | None = None, **train: Any) -> TorchEngine:
    engine = TorchEngine(TorchEngineConfig(device="cpu"))
    engine.start()
    engine.prepare(StepModule(Toy(toy or ToyConfig()), draft, TARGET), TrainSection(**train), total_steps)
    return engine


def toy_draft(dropout: float = 0.0) -> ToyDraft:
    torch.manual_seed(0)
    return ToyDraft({"hidden_size": HIDDEN, "draft_vocab_size": VOCAB}, TARGET, None, dropout)


def gradients(window: Sequence[Pair], **train: Any) -> dict[str, Tensor]:
    """What the optimizer is given by one step."""
    engine = engine_for(toy_draft(), max_grad_norm=None, **train)
    seen: dict[str, Tensor] = {}

    def note(*_: Any) -> None:
        seen.update({n: m.grad.clone() for n, m in engine.masters.masters.items() if m.grad is not None})

    engine.optimizer.register_step_pre_hook(note)
    engine.train_step(window)
    return seen


@settings(deadline=None, max_examples=25)
@given(st.lists(st.booleans(), min_size=6, max_size=6), st.sampled_from([0.0, 0.1, 0.8]))
def test_any_split_into_micro_batches_gives_the_same_gradient(cuts: list[bool], supervised: float) -> None:
    data = rows(7, supervised=supervised)
    starts = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), 7]
    window = [joined(data[a:b]) for a, b in pairwise(starts)]
    whole, split = gradients([joined(data)]), gradients(window)
    assert whole.keys() == split.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(split[name], gradient, atol=1e-6, rtol=1e-5)
    assert supervised == 0.0 or any(g.abs().max() > 1e-3 for g in whole.values())


def test_loss_and_metrics_of_a_window_do_not_depend_on_its_split() -> None:
    data = rows(5)
    whole = engine_for(toy_draft()).train_step([joined(data)])
    split = engine_for(toy_draft()).train_step(data)
    assert whole.metrics.keys() == {"loss", "accuracy/1", "accuracy/2", "acceptance_length"}
    for name, metric in whole.metrics.items():
        assert float(split.metrics[name].sum) == pytest.approx(float(metric.sum), abs=1e-6)
        assert float(split.metrics[name].count) == float(metric.count)
    assert split.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)


def plain_training(draft: ToyDraft, windows: Sequence[Pair], train: TrainSection, total: int) -> list[float]:
    """The same with torch's plain parts: unfused AdamW, LambdaLR, clip_grad_norm_, one micro-batch a step."""
    toy = Toy(ToyConfig())
    optimizer = torch.optim.AdamW(
        toy.parameter_groups(draft, train.weight_decay),
        lr=train.lr,
        betas=train.betas,
        eps=train.eps,
        foreach=False,
        fused=False,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, total, train))
    losses = []
    for batch, features in windows:
        denominator = toy.denominator(draft, batch, features)
        output = toy.training_step(draft, batch, features, TARGET, denominator)
        optimizer.zero_grad()
        output.loss.backward()
        if train.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(draft.parameters(), train.max_grad_norm)
        optimizer.step()
        schedule.step()
        losses.append(float(output.loss.detach()))
    return losses


@pytest.mark.parametrize("max_grad_norm", [None, 0.05, 100.0])
def test_the_engine_is_plain_adamw(max_grad_norm: float | None) -> None:
    options = {"lr": 1e-2, "weight_decay": 0.1, "warmup_ratio": 0.3, "max_grad_norm": max_grad_norm}
    data, fast, plain = rows(10, supervised=0.9)[2:], toy_draft(), toy_draft()
    engine = engine_for(fast, total_steps=8, **options)
    losses = [float(engine.train_step([pair]).metrics["loss"].sum) for pair in data]
    expected = plain_training(plain, data, TrainSection(**options), 8)
    assert losses == pytest.approx(expected, abs=1e-5)
    for mine, theirs in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=1e-5)


def test_bfloat16_keeps_what_its_steps_are_too_small_to_show() -> None:
    data, draft = rows(4, supervised=0.9), toy_draft()
    start = copy.deepcopy(draft.state_dict())
    engine = engine_for(draft, total_steps=40, dtype="bfloat16", lr=1e-6, schedule="constant", warmup_ratio=0.0)
    assert {p.dtype for p in draft.parameters()} == {torch.bfloat16}
    for _ in range(40):
        engine.train_step(data)
    moved = {name: engine.draft_state()[name] - start[name] for name, _ in draft.named_parameters()}
    # Each step of about 1e-6 is lost in a bfloat16 weight of 0.1; their sum in a float32 master is not.
    assert all(5e-6 < float(change.abs().max()) < 5e-5 for change in moved.values())
    for name, parameter in draft.named_parameters():
        assert torch.equal(parameter, engine.draft_state()[name].bfloat16())


def test_bfloat16_sums_gradients_in_float32() -> None:
    data = rows(6, supervised=0.9)
    split = gradients(data, dtype="bfloat16")
    alone = [gradients([pair], dtype="bfloat16") for pair in data]
    assert all(gradient.dtype == torch.float32 for gradient in split.values())
    # A bfloat16 sum would only hold values with eight bits; a float32 sum of eight-bit values holds more.
    assert any(not torch.equal(gradient, gradient.bfloat16().float()) for gradient in split.values())
    assert all(torch.equal(g, g.bfloat16().float()) for one in alone for g in one.values())


def test_bfloat16_is_close_to_float32() -> None:
    data = rows(6, supervised=0.9)
    for low, full in zip(gradients(data, dtype="bfloat16").values(), gradients(data).values(), strict=True):
        torch.testing.assert_close(low, full, atol=3e-2 * float(full.abs().max()), rtol=0)


@given(
    st.integers(1, 200),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(["cosine", "linear", "constant"]),
)
def test_the_schedule_rises_to_its_peak_and_falls_to_its_floor(
    total: int, warmup: float, floor: float, schedule: str
) -> None:
    train = TrainSection(warmup_ratio=warmup, min_lr_ratio=floor, schedule=schedule)  # type: ignore[arg-type]
    factors = [lr_factor(step, total, train) for step in range(total)]
    rising = math.ceil(warmup * total)
    assert all(0 < f <= 1 + 1e-12 or (f == 0 and floor == 0) for f in factors)
    assert factors[:rising] == sorted(factors[:rising])
    assert factors[rising:] == sorted(factors[rising:], reverse=True)
    assert max(factors) == pytest.approx(1.0)
    assert lr_factor(total, total, train) == pytest.approx(1.0 if schedule == "constant" else floor) or rising == total


def test_the_schedule_at_known_steps() -> None:
    cosine = TrainSection(warmup_ratio=0.2, min_lr_ratio=0.1)
    assert [lr_factor(s, 10, cosine) for s in (0, 1, 2, 6)] == pytest.approx([0.5, 1.0, 1.0, 0.55])
    linear = TrainSection(warmup_ratio=0.0, schedule="linear")
    assert [lr_factor(s, 4, linear) for s in range(4)] == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_the_reported_rate_is_the_one_used() -> None:
    engine = engine_for(toy_draft(), total_steps=4, lr=0.5, warmup_ratio=0.5)
    assert [engine.train_step(rows(1)).lr for _ in range(3)] == pytest.approx([0.25, 0.5, 0.5])


def test_a_loss_that_is_not_a_number_stops_the_run_and_changes_nothing() -> None:
    draft = toy_draft()
    engine = engine_for(draft, toy=ToyConfig(poison=3))
    for _ in range(2):
        engine.train_step(rows(1))
    before, state = engine.draft_state(), engine.state()
    with pytest.raises(NonFinite, match=r"step 3: the loss is nan.*lower train\.lr \(now 0\.0001\)"):
        engine.train_step(rows(1))
    assert all(torch.equal(before[name], tensor) for name, tensor in engine.draft_state().items())
    assert all(torch.equal(state.tensors[name], tensor) for name, tensor in engine.state().tensors.items())


def test_a_gradient_that_overflows_stops_the_run() -> None:
    batch, features = rows(1)[0]
    assert features.last_hidden is not None
    draft = toy_draft()
    with torch.no_grad():
        draft.heads[0].weight.mul_(1e38)
    engine = engine_for(draft)
    with pytest.raises(NonFinite, match=r"step 1: the (loss|gradient's norm) is (inf|nan)"):
        engine.train_step([(batch, Features(last_hidden=features.last_hidden * 1e3))])


def test_a_window_without_supervised_tokens_learns_nothing() -> None:
    draft = toy_draft()
    engine = engine_for(draft)
    before = engine.draft_state()
    result = engine.train_step(rows(2, supervised=0.0))
    assert (float(result.metrics["loss"].sum), result.grad_norm) == (0.0, 0.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in engine.draft_state().items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_restored_engine_goes_on_bit_for_bit(dtype: str, tmp_path: Path) -> None:
    data = rows(6)
    options = {"dtype": dtype, "lr": 1e-2, "weight_decay": 0.1}
    whole = engine_for(toy_draft(), **options)
    expected = [float(whole.train_step([pair]).metrics["loss"].sum) for pair in data]

    first = engine_for(toy_draft(), **options)
    for pair in data[:3]:
        first.train_step([pair])
    save_file(first.draft_state(), tmp_path / "draft")
    save_file(first.state().tensors, tmp_path / "optimizer")
    second = engine_for(toy_draft(), **options)
    state = EngineState(load_file(tmp_path / "optimizer"), {"steps_done": 3})
    second.load_state(load_file(tmp_path / "draft"), {}, state)
    assert first.state().values == {"steps_done": 3}
    assert [float(second.train_step([pair]).metrics["loss"].sum) for pair in data[3:]] == expected[3:]
    assert all(torch.equal(whole.draft_state()[n], t) for n, t in second.draft_state().items())
    assert all(torch.equal(whole.state().tensors[n], t) for n, t in second.state().tensors.items())


def test_validation_is_the_training_loss_and_leaves_no_trace() -> None:
    data, draft = rows(5), toy_draft(dropout=0.5)
    engine = engine_for(draft, toy=ToyConfig())
    before, generator = engine.draft_state(), torch.get_rng_state()
    whole = engine.validate([joined(data)])
    assert torch.equal(torch.get_rng_state(), generator)
    draft.dropout.p = 0.0
    trained = engine_for(copy.deepcopy(draft)).train_step([joined(data)])
    loss = whole["loss"]
    assert float(loss.sum / loss.count) == pytest.approx(float(trained.metrics["loss"].sum), rel=1e-6)
    assert float(whole["accuracy/1"].sum) == float(trained.metrics["accuracy/1"].sum)
    assert all(torch.equal(before[name], tensor) for name, tensor in engine.draft_state().items())
    assert all(parameter.grad is None for parameter in draft.parameters())


def test_validation_over_several_batches_weighs_them_by_what_they_supervise() -> None:
    # Of one document and 8 tokens more than heads look ahead, both heads have the same denominators' proportion.
    data = rows(3, supervised=0.0)
    for index, (batch, _) in enumerate(data):
        batch.document_ids[:] = 0
        batch.loss_mask[:, 4 : 6 + 2 * index] = True
    engine = engine_for(toy_draft())
    whole, split = engine.validate([joined(data)])["loss"], engine.validate(data)["loss"]
    assert float(split.sum / split.count) == pytest.approx(float(whole.sum / whole.count), rel=1e-6)


def test_a_draft_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(UserError, match=r"nothing to train: .* freeze every parameter"):
        engine_for(toy_draft().requires_grad_(False))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_named() -> None:
    engine = TorchEngine(TorchEngineConfig(device="cuda:3"))
    with pytest.raises(UserError, match=r'engine\.device is "cuda:3".*set engine\.device = "cpu"'):
        engine.start()
    automatic = TorchEngine(TorchEngineConfig())
    automatic.start()
    assert automatic.device == "cpu"


def test_a_device_name_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="device"):
        TorchEngineConfig(device="gpu")


@pytest.mark.parametrize("threads", [0, 100_000])
def test_threads_that_no_machine_has_are_refused(threads: int) -> None:
    with pytest.raises(ValidationError, match="threads"):
        TorchEngineConfig(threads=threads)
