"""A head and its cross-entropy against labels in one pass over chunks, the gradient made in the forward.

The logits never exist beyond one chunk. Against a teacher's distribution instead: `specdec_core.nn.distill`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from specdec_core.nn.linear import linear

# Rows of [rows, V] logits held at once, twice: enough for full-speed matrix products, 100 MB at V = 49152.
ROWS_PER_CHUNK = 256


@dataclass(frozen=True)
class LabelStats:
    """Per row, without gradient.

    loss     [R] float32 cross-entropy
    correct  [R] bool, the label is the most likely token; the lowest id wins a tie
    """

    loss: Tensor
    correct: Tensor


def label_loss(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    bias: Tensor | None = None,
    finish: Callable[[Tensor], Tensor] = lambda logits: logits,
    rows_per_chunk: int = ROWS_PER_CHUNK,
) -> tuple[Tensor, LabelStats]:
    """Sum over rows of weight * cross-entropy(finish(hidden @ head.T + bias), label).

    hidden   [R, H] what the head reads
    head     [V, H], bias [V]
    labels   [R] int64 rows of the head
    weights  [R] float32, without gradient
    finish   what is done elementwise to the logits (soft-capping, say); differentiable

    Returns the scalar loss and the rows' statistics. The gradient reaches `hidden`, `head` and `bias`, where they
    need one; that of head and bias is summed over the chunks in float32.
    """
    loss, *stats = _LabelLoss.apply(hidden, head, bias, labels, weights, finish, rows_per_chunk)  # type: ignore[no-untyped-call]
    return loss, LabelStats(*stats)


class _LabelLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        weights: Tensor,
        finish: Callable[[Tensor], Tensor],
        rows_per_chunk: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        need_hidden, need_head, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden) if need_hidden else None
        grad_head = torch.zeros_like(head, dtype=torch.float32) if need_head else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if need_bias and bias is not None else None
        loss = hidden.new_zeros(hidden.shape[0], dtype=torch.float32)
        correct = torch.zeros_like(labels, dtype=torch.bool)
        for start in range(0, hidden.shape[0], rows_per_chunk):
            rows = slice(start, start + rows_per_chunk)
            states, wanted = hidden[rows], labels[rows].unsqueeze(1)
            raw = linear(states, head, bias)
            with torch.enable_grad():
                finished = finish(raw.requires_grad_())
            logits = finished.detach().float()
            log_z = logits.logsumexp(-1, keepdim=True)
            loss[rows] = (log_z - logits.gather(1, wanted)).squeeze(1)
            correct[rows] = logits.argmax(-1, keepdim=True).eq(wanted).squeeze(1)
            if grad_hidden is None and grad_head is None and grad_bias is None:
                continue
            grad = (logits - log_z).exp_()
            grad.scatter_add_(1, wanted, grad.new_full((), -1.0).expand_as(wanted))
            grad.mul_(weights[rows].unsqueeze(1))
            (grad_raw,) = torch.autograd.grad(finished, raw, grad.to(finished.dtype))
            if grad_hidden is not None:
                grad_hidden[rows] = linear(grad_raw, head.t())
            if grad_head is not None:
                grad_head += linear(grad_raw.t(), states.t())
            if grad_bias is not None:
                grad_bias += grad_raw.sum(0)
        ctx.save_for_backward(
            grad_hidden,
            None if grad_head is None else grad_head.to(head.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        )
        ctx.mark_non_differentiable(loss, correct)
        return torch.dot(loss, weights), loss, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (None if kept is None else kept.mul_(grads[0]) for kept in ctx.saved_tensors)
        return (*gradients, None, None, None, None)
