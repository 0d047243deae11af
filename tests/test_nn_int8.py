"""int8 linear layers against the layers that they are made of."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from specdec_core.nn.int8 import Int8Linear, available, quantize_linear
from specdec_core.nn.linear import Linear

SHAPES = st.one_of(st.tuples(st.integers(0, 5)), st.tuples(st.integers(1, 3), st.integers(1, 4)))


@settings(deadline=None, max_examples=50)
@given(
    shape=SHAPES,
    sizes=st.tuples(st.integers(1, 70), st.integers(1, 40)),
    biased=st.booleans(),
    spread=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_it_errs_by_no_more_than_the_rounding(
    shape: tuple[int, ...], sizes: tuple[int, int], biased: bool, spread: float
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(*sizes, bias=biased)
    x = torch.randn(*shape, sizes[0]) * spread
    with torch.no_grad():
        expected, found = layer(x), Int8Linear(layer)(x)
        assert found.shape == expected.shape
        if not x.numel():
            return
        # Half a step of each weight; of each input as much again, since the zero point is rounded too.
        x_step, w_step = (x.amax().clamp(min=0) - x.amin().clamp(max=0)) / 127, layer.weight.abs().amax(dim=1) / 127
        bound = x_step * layer.weight.abs().sum(1) + w_step / 2 * x.abs().sum(-1, keepdim=True)
        bound = bound + sizes[0] * x_step * w_step / 2 + 1e-4 * (1 + expected.abs())
    assert bool(((found - expected).abs() <= bound).all())


def test_an_output_keeps_its_scale_beside_a_much_larger_one() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 2, bias=False)
    with torch.no_grad():
        layer.weight[1] *= 1e-4
        x = torch.randn(5, 64)
        expected, found = layer(x), Int8Linear(layer)(x)
    error = (found - expected).norm(dim=0) / expected.norm(dim=0)
    assert bool((error < 0.03).all())


def test_zeros_and_empty_weights_stay_finite() -> None:
    layer = nn.Linear(8, 4)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        torch.testing.assert_close(Int8Linear(layer)(torch.zeros(2, 8)), layer.bias.expand(2, 4))


def test_the_result_has_the_type_of_the_input() -> None:
    layer = nn.Linear(8, 4)
    assert Int8Linear(layer)(torch.randn(2, 8).bfloat16()).dtype == torch.bfloat16


def test_every_linear_layer_inside_is_replaced_and_nothing_else() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Linear(4, 4), nn.LayerNorm(4)))
    quantize_linear(module)
    assert [type(m).__name__ for m in module.modules()] == [
        "Sequential", "Int8Linear", "Sequential", "Int8Linear", "LayerNorm",
    ]  # fmt: skip


def test_only_a_cpu_has_it() -> None:
    assert available("cpu")
    assert not available("cuda")
