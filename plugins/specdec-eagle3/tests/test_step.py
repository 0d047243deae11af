"""The fast step equals the plain one; the plain one equals sums written out by hand."""

from __future__ import annotations

import math
from typing import Any

import torch
from eagle3_support import make, random_batch, with_images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specdec_core.algorithm.base import StepOutput
from specdec_core.data.batch import Batch
from specdec_eagle3.config import Eagle3Config

options_strategy = st.fixed_dictionaries(
    {
        "steps": st.integers(1, 5),
        "step_decay": st.sampled_from([0.8, 1.0]),
        "num_layers": st.sampled_from([1, 2]),
        "fc_norm": st.booleans(),
        "norm_output": st.booleans(),
        "norm_before_residual": st.booleans(),
        "head": st.sampled_from(["trained", "frozen"]),
        "mask": st.sampled_from(["strict", "specforge", "speculators"]),
        "filter_teacher": st.booleans(),
        "objective": st.sampled_from(["cross_entropy", "kl"]),
        "reduction": st.sampled_from(["token", "sequence", "slot"]),
        "regression": st.sampled_from([0.0, 0.7]),
        "recompute": st.booleans(),
        "positions": st.sampled_from(["target", "temporal", "sequential"]),
    }
)


def run(
    options: Eagle3Config, vocab: int | None, data: tuple[Batch, Any], images: bool = False
) -> tuple[StepOutput, dict[str, Tensor]]:
    algorithm, draft, target = make(options, vocab, images=images)
    output = algorithm.training_step(draft, *data, target, algorithm.denominator(draft, *data))
    output.loss.backward()
    return output, {n: p.grad for n, p in draft.named_parameters() if p.grad is not None}


@settings(max_examples=60, deadline=None)
@given(
    options_strategy,
    st.sampled_from([None, 20, 60]),
    st.booleans(),
    st.integers(0, 10_000),
    st.integers(1, 3),
    st.integers(4, 40),
)
def test_fast_equals_plain(
    options: dict[str, Any], vocab: int | None, images: bool, seed: int, rows: int, length: int
) -> None:
    data = random_batch(seed, rows, length)
    data = with_images(data, seed) if images else data
    plain, plain_grads = run(Eagle3Config(**options, implementation="plain"), vocab, data, images)
    fast, fast_grads = run(Eagle3Config(**options, implementation="fast"), vocab, data, images)
    assert math.isclose(fast.loss.item(), plain.loss.item(), rel_tol=1e-5, abs_tol=1e-5)
    for name, expected in plain_grads.items():
        torch.testing.assert_close(fast_grads[name], expected, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert fast.metrics.keys() == plain.metrics.keys()
    for name, expected in plain.metrics.items():
        torch.testing.assert_close(fast.metrics[name].sum, expected.sum, rtol=1e-4, atol=1e-4)
        assert fast.metrics[name].count == expected.count, name
