"""Segmented attention equals softmax over all of a query's keys at once, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specdec_core.nn import attention
from specdec_core.nn.attention import Segment, segmented_attention


def dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    own_keys: Tensor | None,
    own_values: Tensor | None,
    segments: list[Segment],
) -> Tensor:
    """Query by query, with explicit key lists."""
    group = query.shape[1] // key.shape[1]
    outputs = []
    for segment in segments:
        for row in range(segment.q_start, segment.q_end):
            last = segment.k_end - (segment.q_end - row) + 1
            keys, values = key[segment.k_start : last], value[segment.k_start : last]
            if own_keys is not None and own_values is not None:
                keys, values = torch.cat([keys, own_keys[row]]), torch.cat([values, own_values[row]])
            keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
            probs = (torch.einsum("hd,khd->hk", query[row], keys) * query.shape[-1] ** -0.5).softmax(-1)
            outputs.append(torch.einsum("hk,khd->hd", probs, values))
    return torch.stack(outputs)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Segment], int, int]:
    """Documents with a prefix of keys, then one or two runs of queries."""
    segments, queries, keys = [], 0, 0
    for _ in range(draw(st.integers(1, 4))):
        start = keys
        for _ in range(draw(st.integers(1, 2))):
            keys += draw(st.integers(0, 5))
            run = draw(st.integers(1, 40))
            keys += run
            segments.append(Segment(queries, queries + run, start, keys))
            queries += run
    return segments, queries, keys


@pytest.mark.parametrize("device_kernel", ["flash", "blocks"])
@settings(max_examples=40, deadline=None)
@given(cases(), st.sampled_from([(4, 4), (4, 2), (9, 3), (4, 1)]), st.integers(0, 4), st.integers(0, 1000))
def test_equals_dense(
    device_kernel: str, case: tuple[list[Segment], int, int], heads: tuple[int, int], own: int, seed: int
) -> None:
    segments, queries, keys = case
    generator = torch.Generator().manual_seed(seed)

    def make(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) * 2).requires_grad_()

    inputs = [make(queries, heads[0], 8), make(keys, heads[1], 8), make(keys, heads[1], 8)]
    inputs += [make(queries, own, heads[1], 8), make(queries, own, heads[1], 8)] if own else []
    extra: list[Tensor | None] = list(inputs[3:]) if own else [None, None]
    weight = torch.randn(queries, heads[0], 8, generator=generator)
    expected = dense(inputs[0], inputs[1], inputs[2], extra[0], extra[1], segments)
    expected_grads = torch.autograd.grad((expected * weight).sum(), inputs)
    with pytest.MonkeyPatch.context() as patch:
        if device_kernel == "blocks":
            patch.setattr(attention, "_has_flash", lambda device: False)
        actual = segmented_attention(inputs[0], inputs[1], inputs[2], extra[0], extra[1], segments, 8**-0.5)
        grads = torch.autograd.grad((actual * weight).sum(), inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    for got, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
