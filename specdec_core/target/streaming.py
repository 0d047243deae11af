"""The target's next-token distribution, streamed over rows and over the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from specdec_core.nn.linear import linear
from specdec_core.target.base import Teacher

ROWS_PER_BLOCK = 1024
VOCAB_PER_BLOCK = 8192

Finish = Callable[[Tensor], Tensor]
"""What the model does elementwise to its head's output, soft-capping for instance."""


def head_blocks(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, finish: Finish, vocab_per_block: int = VOCAB_PER_BLOCK
) -> Iterator[tuple[int, Tensor]]:
    """Yield (first vocabulary id, float32 logits [N, v]) over the vocabulary, v <= `vocab_per_block`."""
    for start in range(0, weight.shape[0], vocab_per_block):
        stop = start + vocab_per_block
        logits = linear(hidden, weight[start:stop], None if bias is None else bias[start:stop])
        yield start, finish(logits).float()


def stream_teacher(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    finish: Finish = lambda logits: logits,
    rows: Tensor | None = None,
    rows_per_block: int = ROWS_PER_BLOCK,
    vocab_per_block: int = VOCAB_PER_BLOCK,
) -> Teacher:
    """The distribution at `hidden` [N, H] under a head `weight` [V, H], with one product per block.

    The columns of `rows` (ascending or not) are gathered out of each block's logits; softmax arithmetic is
    in float32. The largest temporary is [rows_per_block, vocab_per_block].
    """
    count, vocab = hidden.shape[0], weight.shape[0]
    everything = rows is None
    if rows is None:
        rows = torch.arange(vocab, device=hidden.device)
    ascending, order = torch.sort(rows)
    edges = torch.arange(0, vocab + vocab_per_block, vocab_per_block, device=rows.device)
    bounds = torch.searchsorted(ascending, edges).tolist()
    logits = hidden.new_empty((count, rows.numel()), dtype=torch.float32)
    log_z = hidden.new_empty(count, dtype=torch.float32)
    argmax = hidden.new_empty(count, dtype=torch.int64)
    for first in range(0, count, rows_per_block):
        block = slice(first, min(first + rows_per_block, count))
        top = hidden.new_full((block.stop - first,), -torch.inf, dtype=torch.float32)
        total = torch.zeros_like(top)
        for index, (start, part) in enumerate(head_blocks(hidden[block], weight, bias, finish, vocab_per_block)):
            lo, hi = bounds[index], bounds[index + 1]
            if everything:
                logits[block, lo:hi] = part
            elif hi > lo:
                logits[block, lo:hi] = part[:, ascending[lo:hi] - start]
            best, where = part.max(dim=-1)
            argmax[block] = torch.where(best > top, where + start, argmax[block])
            new_top = torch.maximum(top, best)
            total = total * (top - new_top).exp() + part.sub_(new_top[:, None]).exp_().sum(dim=-1)
            top = new_top
        log_z[block] = top + total.log()
    if not bool((ascending == rows).all()):
        logits = logits[:, torch.argsort(order)]
    return Teacher(logits=logits, log_z=log_z, argmax=argmax)


def stream_argmax(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    finish: Finish = lambda logits: logits,
    rows_per_block: int = ROWS_PER_BLOCK,
    vocab_per_block: int = VOCAB_PER_BLOCK,
) -> Tensor:
    """[N] int64, the most likely token at `hidden` [N, H]; the lowest id wins a tie."""
    argmax = []
    for part in torch.split(hidden, rows_per_block):
        top = part.new_full((part.shape[0],), -torch.inf, dtype=torch.float32)
        token = torch.zeros(part.shape[0], dtype=torch.int64, device=part.device)
        for start, logits in head_blocks(part, weight, bias, finish, vocab_per_block):
            best, where = logits.max(dim=-1)
            token = torch.where(best > top, where + start, token)
            top = torch.maximum(top, best)
        argmax.append(token)
    return torch.cat(argmax) if argmax else hidden.new_empty(0, dtype=torch.int64)
