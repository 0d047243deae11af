"""The step of an algorithm that trains its target: gradients, phases, masters. The twins use transformers directly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from target_checks import random_ids
from tiny_models import VOCAB
from torch import Tensor
from torch.nn import functional as F
from toy_joint import Joint, JointDraft
from toy_plugin import JointConfig
from transformers import AutoModelForCausalLM

from specdec_causal_lm.backbone import CausalLMBackbone
from specdec_causal_lm.config import CausalLMConfig
from specdec_core.capture.features import Features
from specdec_core.config.run import TargetSection, TrainSection
from specdec_core.data.batch import Batch
from specdec_core.engine.base import EngineState, StepModule
from specdec_core.engine.config import TorchEngineConfig
from specdec_core.engine.schedule import lr_factor
from specdec_core.engine.torch_engine import TorchEngine
from specdec_core.target.base import Target
from specdec_core.testing.batches import batch_of

Family = Callable[[str], Path]
DOCUMENTS = [[random_ids(9, 1), random_ids(4, 2)], [random_ids(2, 3), random_ids(7, 4)], [random_ids(5, 5)]]


def supervised(batch: Batch) -> Batch:
    """About half of the tokens are to be learned."""
    batch.loss_mask[:] = torch.rand(batch.ids.shape, generator=torch.Generator().manual_seed(3)) < 0.6
    batch.loss_mask[batch.document_ids < 0] = False
    return batch


def rows(batch: Batch, which: list[int]) -> tuple[Batch, Features]:
    fields = (batch.ids, batch.positions, batch.loss_mask, batch.document_ids)
    return Batch(*(field[which] for field in fields)), Features()


def load_target(directory: Path, dtype: str = "float32") -> tuple[CausalLMBackbone, Target]:
    backbone = CausalLMBackbone(CausalLMConfig())
    section = TargetSection.model_validate({"path": str(directory), "dtype": dtype})
    return backbone, backbone.load(section, "cpu")


def engine_for(
    directory: Path, joint: JointConfig | None = None, total: int = 10, target_dtype: str = "float32", **train: Any
) -> TorchEngine:
    backbone, target = load_target(directory, target_dtype)
    torch.manual_seed(0)
    draft = JointDraft({"hidden_size": 64, "vocab_size": VOCAB}, target)
    engine = TorchEngine(TorchEngineConfig(device="cpu"))
    engine.start()
    step = StepModule(Joint(joint or JointConfig(starts_at=0.0)), draft, target, backbone.module(target))
    engine.prepare(step, TrainSection.model_validate(train), total)
    return engine


def gradients(engine: TorchEngine, window: list[tuple[Batch, Features]]) -> dict[str, Tensor]:
    """What the optimizer is given by one step; the target's under `target.`."""
    seen: dict[str, Tensor] = {}

    def note(*_: Any) -> None:
        seen.update({n: m.grad.clone() for n, m in engine.masters.masters.items() if m.grad is not None})

    engine.optimizer.register_step_pre_hook(note)
    engine.train_step(window)
    return seen


def twin_loss(model: Any, head: torch.nn.Linear, batch: Batch, weight: float) -> Tensor:
    """The joint loss by whole logits, one document at a time, with transformers' eager attention."""
    losses: dict[int, list[Tensor]] = {1: [], 2: []}
    for ids, mask, documents in zip(batch.ids, batch.loss_mask, batch.document_ids, strict=True):
        for number in range(int(documents.max()) + 1):
            text, learned = ids[documents == number], mask[documents == number]
            output = model(text[None], output_hidden_states=True)
            for ahead, logits in ((1, output.logits[0]), (2, head(output.hidden_states[-1][0]))):
                if text.numel() > ahead:
                    loss = F.cross_entropy(logits[:-ahead], text[ahead:], reduction="none")
                    losses[ahead].append(loss[learned[ahead:]])
    own, ahead_loss = (torch.cat(losses[ahead]).mean() for ahead in (1, 2))
    return own + weight * ahead_loss


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "cohere", "olmo2", "phi", "phi3"])
def test_gradients_are_those_of_a_plain_twin(family_dir: Family, family: str) -> None:
    """Tied and untied heads, biases, soft-capped and scaled logits, sliding windows; rows packed and padded."""
    batch = supervised(batch_of(DOCUMENTS))
    engine = engine_for(family_dir(family), max_grad_norm=None)
    head = copy.deepcopy(engine.step.draft.head)
    model = AutoModelForCausalLM.from_pretrained(family_dir(family), attn_implementation="eager").eval()
    twin_loss(model, head, batch, JointConfig().weight).backward()
    expected = {f"target.{name}": parameter.grad for name, parameter in model.named_parameters()}
    expected |= {f"head.{name}": parameter.grad for name, parameter in head.named_parameters()}

    found = gradients(engine, [rows(batch, [0, 1, 2])])
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert max(float(gradient.abs().max()) for name, gradient in found.items() if "target." in name) > 1e-2


@pytest.mark.parametrize("count", [0, 1, 700])
@pytest.mark.parametrize("family", ["phi", "gemma2"])
def test_the_loss_by_labels_equals_that_of_any_target(family_dir: Family, family: str, count: int) -> None:
    """The contract's own, by `logits`, for a head with a bias and for a tied one with soft-capping."""
    backbone, target = load_target(family_dir(family))
    parameters = list(backbone.module(target).requires_grad_().get_output_embeddings().parameters())
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, 64, generator=generator).requires_grad_()
    labels, weights = torch.randint(VOCAB, (count,), generator=generator), torch.rand(count, generator=generator)
    found, expected = (
        loss(hidden, labels, weights) for loss in (target.label_loss, partial(Target.label_loss, target))
    )
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1].loss, expected[1].loss, rtol=1e-5, atol=1e-5)
    assert torch.equal(found[1].correct, expected[1].correct)
    for mine, theirs in zip(
        *(torch.autograd.grad(x[0], [hidden, *parameters]) for x in (found, expected)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=12)
@given(st.lists(st.booleans(), min_size=2, max_size=2), st.sampled_from(["llama", "qwen3"]))
def test_any_split_gives_the_same_gradient(family_dir: Family, cuts: list[bool], family: str) -> None:
    batch = supervised(batch_of(DOCUMENTS))
    starts = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), 3]
    window = [rows(batch, list(range(a, b))) for a, b in pairwise(starts)]
    whole = gradients(engine_for(family_dir(family), max_grad_norm=None), [rows(batch, [0, 1, 2])])
    split = gradients(engine_for(family_dir(family), max_grad_norm=None), window)
    assert whole.keys() == split.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(split[name], gradient, atol=1e-6, rtol=1e-4)


def test_one_norm_is_clipped_over_draft_and_target(family_dir: Family) -> None:
    window = [rows(supervised(batch_of(DOCUMENTS)), [0, 1, 2])]
    whole = gradients(engine_for(family_dir("llama"), max_grad_norm=None), window)
    clipped = gradients(engine_for(family_dir("llama"), max_grad_norm=0.01), window)
    norm = torch.cat([gradient.flatten() for gradient in whole.values()]).norm()
    assert norm > 0.02
    for name, gradient in clipped.items():
        torch.testing.assert_close(gradient, whole[name] * (0.01 / norm), atol=1e-7, rtol=1e-4)


def plain_training(
    directory: Path, head: torch.nn.Linear, batch: Batch, joint: JointConfig, train: TrainSection, total: int
) -> dict[str, Tensor]:
    """Two plain AdamW, of which the target's begins where its phase does. Returns the weights at the end."""
    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    start = int(joint.starts_at * total)

    def adamw(module: torch.nn.Module, lr: float) -> torch.optim.AdamW:
        by_size: list[list[Tensor]] = [[], []]
        for parameter in module.parameters():
            by_size[parameter.ndim >= 2].append(parameter)
        groups = [{"params": by_size[1], "weight_decay": train.weight_decay}, {"params": by_size[0], "weight_decay": 0}]
        return torch.optim.AdamW(groups, lr=lr, betas=train.betas, eps=train.eps, foreach=False, fused=False)

    optimizers = [(adamw(head, train.lr), train.lr, 0), (adamw(model, joint.target_lr), joint.target_lr, start)]
    for step in range(total):
        loss = twin_loss(model, head, batch, joint.weight)
        loss.backward()
        for optimizer, peak, begins in optimizers:
            if step >= begins:
                for group in optimizer.param_groups:
                    group["lr"] = peak * lr_factor(step - begins, total - begins, train)
                optimizer.step()
            optimizer.zero_grad()
    weights = {f"target.{name}": tensor.detach() for name, tensor in model.named_parameters()}
    return weights | {f"head.{name}": tensor.detach() for name, tensor in head.named_parameters()}


@pytest.mark.parametrize("starts_at", [0.0, 0.5])
def test_the_phases_are_plain_adamw_begun_at_their_starts(family_dir: Family, starts_at: float) -> None:
    batch, joint, total = supervised(batch_of(DOCUMENTS)), JointConfig(starts_at=starts_at, target_lr=1e-3), 6
    # A large epsilon, so that AdamW does not make rounding of the smallest gradients into whole steps.
    options = {"lr": 1e-2, "weight_decay": 0.1, "warmup_ratio": 0.4, "max_grad_norm": None, "eps": 1e-3}
    engine = engine_for(family_dir("qwen3"), joint, total, **options)
    head = copy.deepcopy(engine.step.draft.head)
    for _ in range(total):
        engine.train_step([rows(batch, [0]), rows(batch, [1, 2])])
    expected = plain_training(family_dir("qwen3"), head, batch, joint, TrainSection.model_validate(options), total)
    for name, master in engine.masters.masters.items():
        torch.testing.assert_close(master.detach(), expected[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_before_its_phase_nothing_of_the_target_moves(family_dir: Family, dtype: str) -> None:
    batch = supervised(batch_of(DOCUMENTS))
    options = {"lr": 1e-2, "weight_decay": 0.5, "dtype": dtype, "schedule": "constant", "warmup_ratio": 0.0}
    engine = engine_for(family_dir("llama"), JointConfig(starts_at=0.35), 10, dtype, **options)
    start_target, start_draft = engine.target_state(), engine.draft_state()
    for step in range(5):
        moments = [name for name in engine.state().tensors if name.startswith("target.")]
        moved = [name for name, tensor in engine.target_state().items() if not torch.equal(tensor, start_target[name])]
        if step <= 3:
            assert (moments, moved) == ([], []), step
        else:
            assert len(moved) == len(start_target)
            assert len(moments) == 3 * len(start_target)
        assert any(not torch.equal(engine.draft_state()[name], start_draft[name]) for name in start_draft) == (step > 0)
        engine.train_step([rows(batch, [0, 1, 2])])
    rates = {(group["start"], group["lr"]) for group in engine.optimizer.param_groups}
    assert rates == {(0, 1e-2), (3, JointConfig().target_lr)}
    for name, master in engine.masters.masters.items():
        assert engine.masters.parameters[name].dtype == getattr(torch, dtype)
        assert master.dtype == torch.float32
        assert torch.equal(engine.masters.parameters[name], master.to(getattr(torch, dtype)))


def test_before_its_phase_the_target_costs_no_backward(family_dir: Family) -> None:
    batch = supervised(batch_of(DOCUMENTS))
    engine = engine_for(family_dir("llama"), JointConfig(starts_at=0.5), 2)
    module, seen = engine.step.target_module, []
    assert module is not None
    module.get_decoder().norm.register_forward_hook(lambda _, args, output: seen.append(output.requires_grad))
    for _ in range(2):
        engine.train_step([rows(batch, [0, 1, 2])])
    assert seen == [False, True]


def test_a_target_in_bfloat16_keeps_what_its_steps_are_too_small_to_show(family_dir: Family) -> None:
    batch = supervised(batch_of(DOCUMENTS))
    joint = JointConfig(starts_at=0.0, target_lr=1e-6)
    options = {"dtype": "bfloat16", "schedule": "constant", "warmup_ratio": 0.0}
    engine = engine_for(family_dir("llama"), joint, 20, "bfloat16", **options)
    start = engine.target_state()
    for _ in range(20):
        engine.train_step([rows(batch, [0, 1, 2])])
    moved = {name: (tensor - start[name]).abs().max() for name, tensor in engine.target_state().items()}
    assert all(2e-6 < float(change) < 3e-5 for change in moved.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stop", [1, 4])
def test_a_restored_engine_goes_on_bit_for_bit(family_dir: Family, tmp_path: Path, dtype: str, stop: int) -> None:
    batch, joint = supervised(batch_of(DOCUMENTS)), JointConfig(starts_at=0.4)

    def engine() -> TorchEngine:
        return engine_for(family_dir("qwen3"), joint, 6, dtype, dtype=dtype, lr=1e-2, weight_decay=0.1)

    def run(engine: TorchEngine, steps: int) -> list[float]:
        window = [rows(batch, [0]), rows(batch, [1, 2])]
        return [float(engine.train_step(window).metrics["loss"].sum) for _ in range(steps)]

    whole, first, second = engine(), engine(), engine()
    expected = run(whole, 6)
    run(first, stop)
    for name, tensors in (("draft", first.draft_state()), ("target", first.target_state())):
        save_file(tensors, tmp_path / name)
    save_file(first.state().tensors, tmp_path / "optimizer")
    state = EngineState(load_file(tmp_path / "optimizer"), first.state().values)
    second.load_state(load_file(tmp_path / "draft"), load_file(tmp_path / "target"), state)
    assert run(second, 6 - stop) == expected[stop:]
    for mine, theirs in (
        (second.draft_state(), whole.draft_state()),
        (second.target_state(), whole.target_state()),
        (second.state().tensors, whole.state().tensors),
    ):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())
    assert "lm_head.weight" not in whole.target_state(), "the tied head should be kept once"


def test_validation_is_the_training_loss_and_leaves_no_trace(family_dir: Family) -> None:
    batch = supervised(batch_of(DOCUMENTS))
    engine = engine_for(family_dir("llama"))
    before = engine.target_state()
    window = [rows(batch, [0, 1, 2])]
    validated = engine.validate(window)
    trained = engine_for(family_dir("llama")).train_step(window)
    assert float(validated["loss"].sum / validated["loss"].count) == pytest.approx(float(trained.metrics["loss"].sum))
    assert all(torch.equal(before[name], tensor) for name, tensor in engine.target_state().items())
    assert all(parameter.grad is None for parameter in engine.step.parameters())


def test_a_misspelt_key_of_a_group_is_named(family_dir: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Joint, "target_group", lambda self: {"start_at": 0.5})
    with pytest.raises(ValueError, match=r"a parameter group has no key 'start_at'; allowed: betas, .*starts_at"):
        engine_for(family_dir("llama"))


def test_a_frozen_target_is_left_as_it_is(family_dir: Family) -> None:
    backbone, target = load_target(family_dir("llama"))
    step = StepModule(Joint(JointConfig()), JointDraft({"hidden_size": 64, "vocab_size": VOCAB}, target), target)
    batch = supervised(batch_of(DOCUMENTS))
    features = target.capture(batch, Joint(JointConfig()).capture_plan(target.facts))
    assert not any(tensor.requires_grad for tensor in features.tensors())
    assert not any(parameter.requires_grad for parameter in backbone.module(target).parameters())
    assert {id(parameter) for parameter in step.parameters()} == {id(p) for p in step.draft.parameters()}
    assert len(step.parameter_groups(0.0)) == 2
