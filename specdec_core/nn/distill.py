"""A head and its distillation loss in one pass over chunks, the gradient made in the forward.

Neither the draft's logits nor the teacher's exist beyond one chunk. Rows of several training steps that
share a teacher slot are worked on together, so that the teacher is computed once per slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specdec_core.nn.linear import linear
from specdec_core.target.base import Teacher


@dataclass(frozen=True)
class DistillRows:
    """R rows of draft states, group by group (a group: one training-time-test step, or one head).

    slots    per group, [R_g] ascending indices of the rows' teacher slots
    weights  [R] what each row's loss is multiplied by, all groups in order
    """

    slots: Sequence[Tensor]
    weights: Tensor


@dataclass(frozen=True)
class DistillStats:
    """Per row, without gradient.

    loss        [R] cross-entropy against the teacher restricted to the draft vocabulary
    entropy     [R] the restricted teacher's entropy: loss - entropy is the KL divergence
    correct     [R] bool, the draft's top token is the target's, over the target's whole vocabulary
    acceptance  [R] 1 - TV(p, q), the chance that rejection sampling accepts the draft's sample
    """

    loss: Tensor
    entropy: Tensor
    correct: Tensor
    acceptance: Tensor


def distill(
    hidden: Tensor,
    head: Tensor,
    rows: DistillRows,
    teacher: Iterable[Teacher],
    draft_ids: Tensor | None,
) -> tuple[Tensor, DistillStats]:
    """Sum over rows of weight * cross-entropy(teacher, softmax(hidden @ head.T)).

    hidden     [R, H] what the head reads
    head       [D, H]
    teacher    chunks of consecutive teacher slots, in order, each with logits over the D draft ids
    draft_ids  [D] target ids of the draft vocabulary; None where it is the whole vocabulary

    Returns the scalar loss and the rows' statistics. The gradient reaches `hidden` and `head`.
    """
    loss, *stats = _Distill.apply(hidden, head, rows, teacher, draft_ids)  # type: ignore[no-untyped-call]
    return loss, DistillStats(*stats)


class _Distill(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        rows: DistillRows,
        teacher: Iterable[Teacher],
        draft_ids: Tensor | None,
    ) -> tuple[Tensor, ...]:
        total_rows = hidden.shape[0]
        need_hidden, need_head = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        grad_hidden = torch.zeros_like(hidden) if need_hidden else None
        grad_head = torch.zeros_like(head) if need_head else None
        stats = [hidden.new_zeros(total_rows, dtype=torch.float32) for _ in range(4)]
        starts = _starts(rows.slots)
        bounds, begin = [], 0
        chunks = iter(teacher)
        for chunk in chunks:
            end = begin + chunk.logits.shape[0]
            bounds = [
                tuple(torch.searchsorted(s, torch.tensor([begin, end], device=s.device)).tolist()) for s in rows.slots
            ]
            picks = [
                (slice(start + low, start + high), slots[low:high] - begin)
                for start, slots, (low, high) in zip(starts, rows.slots, bounds, strict=True)
                if high > low
            ]
            begin = end
            if picks:
                _chunk(hidden, head, rows.weights, chunk, draft_ids, picks, grad_hidden, grad_head, stats)
        loss, entropy, correct, acceptance = stats
        ctx.save_for_backward(grad_hidden, grad_head)
        outputs = (torch.dot(loss, rows.weights), loss, entropy, correct.bool(), acceptance)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        grad_hidden, grad_head = ctx.saved_tensors
        scale = grads[0]
        return (
            None if grad_hidden is None else grad_hidden.mul_(scale),
            None if grad_head is None else grad_head.mul_(scale),
            None,
            None,
            None,
        )


def _starts(groups: Sequence[Tensor]) -> list[int]:
    starts = [0]
    for group in groups:
        starts.append(starts[-1] + group.numel())
    return starts[:-1]


def _chunk(
    hidden: Tensor,
    head: Tensor,
    weights: Tensor,
    teacher: Teacher,
    draft_ids: Tensor | None,
    picks: list[tuple[slice, Tensor]],
    grad_hidden: Tensor | None,
    grad_head: Tensor | None,
    stats: list[Tensor],
) -> None:
    """One chunk of teacher slots: fills `stats` and adds to the gradients, in place."""
    index = torch.cat([torch.arange(r.start, r.stop, device=hidden.device) for r, _ in picks])
    slots = torch.cat([s for _, s in picks])
    states = hidden[index]
    logits = linear(states, head).float()

    restricted = teacher.logits.float()
    restricted_z = restricted.logsumexp(-1)
    probs = (restricted - restricted_z.unsqueeze(-1)).exp_()
    # sum(p * logit) of the teacher under itself gives its entropy.
    entropy = restricted_z - torch.linalg.vecdot(probs, restricted)
    covered = (restricted_z - teacher.log_z).exp()

    top, guess = logits.max(-1)
    guess = guess if draft_ids is None else draft_ids[guess]
    aligned = probs[slots]
    expected = torch.linalg.vecdot(aligned, logits)
    q = logits.sub_(top.unsqueeze(-1)).exp_()
    total = q.sum(-1)
    q.div_(total.unsqueeze(-1))

    loss, entropies, correct, acceptance = stats
    loss[index] = top + total.log() - expected
    entropies[index] = entropy[slots]
    correct[index] = (guess == teacher.argmax[slots]).float()
    acceptance[index] = torch.minimum(aligned * covered[slots].unsqueeze(-1), q).sum(-1)

    if grad_hidden is None and grad_head is None:
        return
    grad_logits = q.sub_(aligned).mul_(weights[index].unsqueeze(-1)).to(states.dtype)
    if grad_hidden is not None:
        grad_hidden[index] = linear(grad_logits, head.t())
    if grad_head is not None:
        grad_head += linear(grad_logits.t(), states.t())
