"""The chunked head and its loss against labels equals whole logits and autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from specdec_core.nn.labels import label_loss


def capped(logits: Tensor) -> Tensor:
    return torch.tanh(logits / 3) * 3


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(0, 20),
    chunk=st.integers(1, 21),
    with_bias=st.booleans(),
    finish=st.sampled_from([lambda logits: logits, capped, lambda logits: logits * 0.25]),
)
def test_equals_whole_logits(
    seed: int, rows: int, chunk: int, with_bias: bool, finish: Callable[[Tensor], Tensor]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 6, generator=generator).requires_grad_()
    head = torch.randn(31, 6, generator=generator).requires_grad_()
    bias = torch.randn(31, generator=generator).requires_grad_() if with_bias else None
    labels = torch.randint(31, (rows,), generator=generator)
    weights = torch.rand(rows, generator=generator)
    trained = [hidden, head, *([] if bias is None else [bias])]

    loss, stats = label_loss(hidden, head, labels, weights, bias=bias, finish=finish, rows_per_chunk=chunk)
    gradients = torch.autograd.grad(2 * loss, trained)

    logits = finish(F.linear(hidden, head, bias))
    losses = F.cross_entropy(logits, labels, reduction="none")
    expected = torch.autograd.grad(2 * (losses * weights).sum(), trained)
    torch.testing.assert_close(loss, (losses * weights).sum().detach(), rtol=1e-5, atol=1e-5)
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stats.loss, losses.detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(stats.correct, logits.argmax(-1) == labels)


@pytest.mark.parametrize("trained", ["hidden", "head", "neither"])
def test_what_is_frozen_gets_no_gradient(trained: str) -> None:
    hidden = torch.randn(3, 4, requires_grad=trained == "hidden")
    head = torch.randn(5, 4, requires_grad=trained == "head")
    loss, _ = label_loss(hidden, head, torch.tensor([0, 4, 4]), torch.ones(3))
    assert loss.requires_grad == (trained != "neither")
    if loss.requires_grad:
        loss.backward()
    assert (hidden.grad is not None, head.grad is not None) == (trained == "hidden", trained == "head")


def test_a_bfloat16_head_sums_its_gradient_in_float32() -> None:
    # One large gradient, then many that a bfloat16 sum would each round away.
    rows = 200
    hidden = torch.ones(rows, 1, dtype=torch.bfloat16)
    head = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    weights = torch.cat([torch.tensor([512.0]), torch.ones(rows - 1)])
    loss, _ = label_loss(hidden, head, torch.zeros(rows, dtype=torch.int64), weights, rows_per_chunk=1)
    loss.backward()
    assert head.grad is not None
    assert head.grad.dtype == torch.bfloat16
    assert head.grad[1].item() == pytest.approx(0.5 * float(weights.sum()), rel=2**-8)
