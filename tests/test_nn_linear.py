"""oneDNN's products against PyTorch's own, forward and backward, packed and not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from specdec_core.nn.linear import AVAILABLE, Linear, linear, pack_linear, replace_linear

SHAPES = st.one_of(st.tuples(st.integers(0, 9)), st.tuples(st.integers(1, 3), st.integers(0, 7)))


def test_it_is_available_where_pytorch_has_onednn() -> None:
    assert torch.backends.mkldnn.is_available() == AVAILABLE


@settings(deadline=None, max_examples=60)
@given(
    shape=SHAPES,
    sizes=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    biased=st.booleans(),
    needs=st.tuples(*[st.booleans()] * 3),
)
def test_values_and_gradients_equal_pytorchs(
    shape: tuple[int, ...], sizes: tuple[int, int], biased: bool, needs: tuple[bool, bool, bool]
) -> None:
    inputs, outputs = sizes
    tensors = [torch.randn(*shape, inputs), torch.randn(outputs, inputs)]
    tensors += [torch.randn(outputs)] if biased else []
    for tensor, need in zip(tensors, needs, strict=False):
        tensor.requires_grad_(need)
    found, expected = linear(*tensors), F.linear(*tensors)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    assert found.requires_grad == bool(wanted)
    if wanted:
        upstream = torch.randn_like(expected)
        ours, theirs = (torch.autograd.grad(y, wanted, upstream) for y in (found, expected))
        for mine, reference in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


def test_strided_operands() -> None:
    x, weight = torch.randn(5, 6).t(), torch.randn(5, 8).t()
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight))


def test_other_types_go_to_pytorch() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        x, weight = torch.randn(3, 4).to(dtype), torch.randn(5, 4).to(dtype)
        assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_a_second_derivative_is_refused() -> None:
    x, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    [grad] = torch.autograd.grad(linear(x, weight).square().sum(), [x], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


class TestPacked:
    @pytest.mark.parametrize("rows", [1, 2, 5, 40])
    def test_equals_the_dense_weight(self, rows: int) -> None:
        layer, x = Linear(24, 40), torch.randn(2, rows, 24)
        layer.pack(5)
        expected = F.linear(x, layer.weight, layer.bias)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(layer(x), expected)

    def test_a_weight_that_changed_is_not_served_from_the_old_copy(self) -> None:
        layer, x = Linear(24, 40), torch.randn(3, 24)
        layer.pack(5)
        with torch.no_grad():
            layer.weight.mul_(2)
            torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
            layer.load_state_dict({"weight": torch.randn(40, 24), "bias": torch.randn(40)})
            torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))

    def test_gradients_flow_through_the_weight(self) -> None:
        layer = Linear(24, 40)
        layer.pack(5)
        layer(torch.randn(3, 24)).sum().backward()
        assert layer.weight.grad is not None

    def test_the_copy_is_not_saved(self) -> None:
        layer = Linear(24, 40)
        layer.pack(5)
        assert set(layer.state_dict()) == {"weight", "bias"}


def test_replacing_keeps_parameters_ties_and_subclasses() -> None:
    class Special(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU()), Special(8, 8))
    model[1][0].weight = model[0].weight
    before, x = dict(model.named_parameters(remove_duplicate=False)), torch.randn(3, 8)
    expected = model(x)
    replace_linear(model)
    pack_linear(model, rows=3)
    assert [type(layer) for layer in (model[0], model[1][0], model[2])] == [Linear, Linear, Special]
    after = dict(model.named_parameters(remove_duplicate=False))
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)
