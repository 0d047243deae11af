"""A head and its loss in one pass over chunks, the gradient made in the forward.

Neither the draft's logits nor the teacher's exist beyond one chunk. Rows of several training steps or heads that
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
    labels   [R] int64 which row of the head is to be said, -1 for none (the loss is then 0). None: what the teacher
             says, as a distribution
    """

    slots: Sequence[Tensor]
    weights: Tensor
    labels: Tensor | None = None


@dataclass(frozen=True)
class DistillStats:
    """Per row, without gradient.

    loss        [R] cross-entropy against the label, or the teacher restricted to the draft vocabulary
    entropy     [R] the restricted teacher's entropy: without labels, loss - entropy is the KL divergence
    correct     [R] bool, the draft's top token is the target's, over the target's whole vocabulary
    acceptance  [R] 1 - TV(p, q), the chance that rejection sampling accepts the draft's sample
    """

    loss: Tensor
    entropy: Tensor
    correct: Tensor
    acceptance: Tensor


def distill(
    hidden: Tensor,
    head: Tensor | Sequence[Tensor],
    rows: DistillRows,
    teacher: Iterable[Teacher],
    draft_ids: Tensor | None,
) -> tuple[Tensor, DistillStats]:
    """Sum over rows of weight * cross-entropy(label or teacher, softmax(hidden @ head.T)).

    hidden     [R, H] what the head reads
    head       [D, H], or one such for each group
    teacher    chunks of consecutive teacher slots, in order, each with logits over the D draft ids
    draft_ids  [D] target ids of the draft vocabulary; None where it is the whole vocabulary

    Returns the scalar loss and the rows' statistics. The gradient reaches `hidden` and the heads.
    """
    heads = [head] if isinstance(head, Tensor) else list(head)
    loss, *stats = _Distill.apply(hidden, rows, teacher, draft_ids, *heads)  # type: ignore[no-untyped-call]
    return loss, DistillStats(*stats)


class _Distill(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        rows: DistillRows,
        teacher: Iterable[Teacher],
        draft_ids: Tensor | None,
        *heads: Tensor,
    ) -> tuple[Tensor, ...]:
        need_hidden, need_heads = ctx.needs_input_grad[0], ctx.needs_input_grad[4:]
        work = _Work(
            hidden,
            rows,
            draft_ids,
            heads,
            torch.zeros_like(hidden) if need_hidden else None,
            [torch.zeros_like(head) if need else None for head, need in zip(heads, need_heads, strict=True)],
            [hidden.new_zeros(hidden.shape[0], dtype=torch.float32) for _ in range(4)],
        )
        starts = _starts(rows.slots)
        begin = 0
        for chunk in teacher:
            end = begin + chunk.logits.shape[0]
            picks = []
            for start, slots in zip(starts, rows.slots, strict=True):
                low, high = torch.searchsorted(slots, torch.tensor([begin, end], device=slots.device)).tolist()
                picks.append((torch.arange(start + low, start + high, device=hidden.device), slots[low:high] - begin))
            begin = end
            work.chunk(chunk, picks)
        loss, entropy, correct, acceptance = work.stats
        ctx.save_for_backward(work.grad_hidden, *work.grad_heads)
        outputs = (torch.dot(loss, rows.weights), loss, entropy, correct.bool(), acceptance)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        grad_hidden, *grad_heads = (None if grad is None else grad.mul_(grads[0]) for grad in ctx.saved_tensors)
        return grad_hidden, None, None, None, *grad_heads


def _starts(groups: Sequence[Tensor]) -> list[int]:
    starts = [0]
    for group in groups:
        starts.append(starts[-1] + group.numel())
    return starts[:-1]


@dataclass(frozen=True)
class _Work:
    """What chunks read, and what they fill and add to in place: the gradients and the statistics."""

    hidden: Tensor
    rows: DistillRows
    draft_ids: Tensor | None
    heads: Sequence[Tensor]
    grad_hidden: Tensor | None
    grad_heads: Sequence[Tensor | None]
    stats: Sequence[Tensor]

    def chunk(self, teacher: Teacher, picks: Sequence[tuple[Tensor, Tensor]]) -> None:
        """One chunk of teacher slots; `picks` are, per group, the rows and their slots in the chunk."""
        if not any(index.numel() for index, _ in picks):
            return
        restricted = teacher.logits.float()
        restricted_z = restricted.logsumexp(-1)
        probs = (restricted - restricted_z.unsqueeze(-1)).exp_()
        # sum(p * logit) of the teacher under itself gives its entropy.
        entropy = restricted_z - torch.linalg.vecdot(probs, restricted)
        covered = (restricted_z - teacher.log_z).exp()
        if len(self.heads) == 1:
            picks = [(torch.cat([index for index, _ in picks]), torch.cat([slots for _, slots in picks]))]
        for head, (index, slots) in enumerate(picks):
            if index.numel():
                self._rows(head, index, slots, teacher.argmax, probs, entropy, covered)

    def _rows(
        self, head: int, index: Tensor, slots: Tensor, argmax: Tensor, probs: Tensor, entropy: Tensor, covered: Tensor
    ) -> None:
        """Rows `index` [r] of one head, whose teacher slots are `slots` [r] of the chunk."""
        states, weight = self.hidden[index], self.heads[head]
        labels = None if self.rows.labels is None else self.rows.labels[index].unsqueeze(-1)
        logits = linear(states, weight).float()
        top, guess = logits.max(-1)
        guess = guess if self.draft_ids is None else self.draft_ids[guess]
        aligned = probs[slots]
        if labels is None:
            expected = torch.linalg.vecdot(aligned, logits)
        else:
            expected = logits.gather(1, labels.clamp(min=0)).squeeze(-1)
        q = logits.sub_(top.unsqueeze(-1)).exp_()
        total = q.sum(-1)
        q.div_(total.unsqueeze(-1))

        loss, entropies, correct, acceptance = self.stats
        value = top + total.log() - expected
        loss[index] = value if labels is None else torch.where(labels.squeeze(-1) < 0, 0.0, value)
        entropies[index] = entropy[slots]
        correct[index] = (guess == argmax[slots]).float()
        acceptance[index] = torch.minimum(aligned * covered[slots].unsqueeze(-1), q).sum(-1)

        grad_head = self.grad_heads[head]
        if self.grad_hidden is None and grad_head is None:
            return
        if labels is None:
            q.sub_(aligned)
        else:
            q.scatter_add_(1, labels.clamp(min=0), torch.full_like(labels, -1, dtype=q.dtype)).mul_(labels >= 0)
        grad_logits = q.mul_(self.rows.weights[index].unsqueeze(-1)).to(states.dtype)
        if self.grad_hidden is not None:
            self.grad_hidden[index] = linear(grad_logits, weight.t())
        if grad_head is not None:
            grad_head += linear(grad_logits.t(), states.t())
