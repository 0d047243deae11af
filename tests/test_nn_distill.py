"""The chunked head and loss equals whole logits and autograd."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from specdec_core.nn.distill import DistillRows, distill
from specdec_core.target.base import Teacher


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 1000),
    groups=st.lists(st.sets(st.integers(0, 19), max_size=20), min_size=1, max_size=4),
    vocab=st.sampled_from([None, 7, 23]),
    chunk=st.integers(1, 21),
    shared=st.booleans(),
    labelled=st.booleans(),
)
def test_equals_whole_logits(
    seed: int, groups: list[set[int]], vocab: int | None, chunk: int, shared: bool, labelled: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher_logits = torch.randn(20, 31, generator=generator) * 3
    ids = None if vocab is None else torch.randperm(31, generator=generator)[:vocab].sort().values
    size = 31 if vocab is None else vocab
    slots = [torch.tensor(sorted(group), dtype=torch.int64) for group in groups]
    rows = sum(group.numel() for group in slots)
    hidden = torch.randn(rows, 6, generator=generator).requires_grad_()
    heads = [torch.randn(size, 6, generator=generator).requires_grad_() for _ in range(1 if shared else len(groups))]
    weights = torch.rand(rows, generator=generator)
    labels = torch.randint(-1, size, (rows,), generator=generator) if labelled else None

    def chunks() -> Iterator[Teacher]:
        for part in teacher_logits.split(chunk):
            yield Teacher(part if ids is None else part[:, ids], part.logsumexp(-1), part.argmax(-1))

    loss, stats = distill(hidden, heads[0] if shared else heads, DistillRows(slots, weights, labels), chunks(), ids)
    grads = torch.autograd.grad(2 * loss, [hidden, *heads])

    full = teacher_logits[torch.cat(slots)]
    columns = torch.arange(31) if ids is None else ids
    target = full[:, columns].softmax(-1)
    parts = hidden.split([group.numel() for group in slots])
    logits = torch.cat([part @ heads[0 if shared else group].t() for group, part in enumerate(parts)])
    wanted_probs = target
    if labels is not None:
        wanted_probs = F.one_hot(labels + 1, size + 1)[:, 1:].float()
    losses = -(wanted_probs * logits.log_softmax(-1)).sum(-1)
    expected = (losses * weights).sum()
    expected_grads: tuple[Tensor, ...] = torch.autograd.grad(2 * expected, [hidden, *heads])
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-5)
    for got, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stats.loss, losses.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stats.entropy, torch.distributions.Categorical(target).entropy(), rtol=1e-4, atol=1e-5)
    assert torch.equal(stats.correct, columns[logits.argmax(-1)] == full.argmax(-1))
    draft = torch.zeros(rows, 31).index_copy_(1, columns, F.softmax(logits.detach(), -1))
    total_variation = 0.5 * (full.softmax(-1) - draft).abs().sum(-1)
    torch.testing.assert_close(stats.acceptance, 1 - total_variation, rtol=1e-4, atol=1e-5)


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, head = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    teacher = torch.randn(3, 5)
    rows = DistillRows([torch.arange(3)], torch.ones(3))
    loss, _ = distill(hidden, head, rows, [Teacher(teacher, teacher.logsumexp(-1), teacher.argmax(-1))], None)
    loss.backward()
    assert hidden.grad is not None
    assert head.grad is None
