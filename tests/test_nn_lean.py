"""The lean pieces equal PyTorch's own, forward and backward, and keep less."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from specdec_core.nn.lean import RMSNorm, swiglu_down

FLAGS = st.tuples(*[st.booleans()] * 4)


def kept(work: Callable[[], Tensor], known: list[Tensor]) -> int:
    """Bytes that autograd keeps for `work`'s backward besides `known`."""
    storages: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        work()
    return sum(size for at, size in storages.items() if at not in {x.untyped_storage().data_ptr() for x in known})


def equal_with_gradients(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    wanted = [x for x in inputs if x.requires_grad]
    assert ours.requires_grad == bool(wanted)
    if wanted:
        upstream = torch.randn_like(ours)
        for mine, reference in zip(
            torch.autograd.grad(ours, wanted, upstream), torch.autograd.grad(theirs, wanted, upstream), strict=True
        ):
            torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(0, 6), batch=st.integers(1, 3), size=st.integers(1, 24), biased=st.booleans(), needs=FLAGS)
def test_swiglu_down_equals_its_parts(
    rows: int, batch: int, size: int, biased: bool, needs: tuple[bool, bool, bool, bool]
) -> None:
    inputs = [torch.randn(batch, rows, size), torch.randn(batch, rows, size), torch.randn(5, size)]
    inputs += [torch.randn(5)] if biased else []
    for x, need in zip(inputs, needs, strict=False):
        x.requires_grad_(need)
    gate, up, weight, *bias = inputs
    equal_with_gradients(swiglu_down(gate, up, weight, *bias), F.linear(F.silu(gate) * up, weight, *bias), inputs)


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(0, 6), size=st.integers(1, 24), needs=st.tuples(st.booleans(), st.booleans()))
def test_rms_norm_equals_pytorchs(rows: int, size: int, needs: tuple[bool, bool]) -> None:
    ours, theirs = RMSNorm(size, eps=1e-5), nn.RMSNorm(size, eps=1e-5)
    weight = torch.randn(size, requires_grad=needs[1])
    ours.weight = theirs.weight = nn.Parameter(weight, requires_grad=needs[1])
    x = torch.randn(2, rows, size, requires_grad=needs[0])
    equal_with_gradients(ours(x), theirs(x), [x, ours.weight])


def test_rms_norm_of_bfloat16_is_computed_in_float32() -> None:
    norm = RMSNorm(64, eps=1e-5).to(torch.bfloat16)
    x = torch.randn(3, 64).to(torch.bfloat16)
    torch.testing.assert_close(norm(x), F.rms_norm(x.float(), (64,), eps=1e-5).to(torch.bfloat16), rtol=0, atol=0)


def test_without_an_eps_it_is_the_types_own() -> None:
    x = torch.randn(3, 8)
    torch.testing.assert_close(RMSNorm(8)(x), nn.RMSNorm(8)(x))


@pytest.mark.parametrize("size", [64])
def test_less_is_kept(size: int) -> None:
    x, gate, up = (torch.randn(32, size, requires_grad=True) for _ in range(3))
    weight = torch.randn(8, size, requires_grad=True)
    norm = RMSNorm(size, eps=1e-5)
    assert kept(lambda: norm(x), [x, norm.weight]) == 32 * 4
    assert kept(lambda: swiglu_down(gate, up, weight), [gate, up, weight]) == 0
