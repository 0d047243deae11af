"""Attention over blocks that are merged by log-sum-exp, so that no S x S matrix need exist.

Softmax attention over a union of key sets is the sum of the attentions over each set, weighted by
exp(lse_set - lse_union). The backward pass over one set needs only the merged output and the merged
log-sum-exp: with them, exp(score - lse) is the probability within the union (FlashAttention-2,
arXiv 2307.08691, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class AttentionPlan(Protocol):
    """How a decoder layer attends: a plan, never a dense mask."""

    def queries(self, layer: int) -> Tensor | None:
        """[M] which of the rows that give keys also go on as queries in this layer; None is all of them."""
        ...

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query [M, heads, d], key and value [C, kv_heads, d], rotated -> [M, heads, d]."""
        ...


class Segment(NamedTuple):
    """Queries [q_start, q_end) attend keys [k_start, k_end); the last keys are the queries' own slots."""

    q_start: int
    q_end: int
    k_start: int
    k_end: int


def segmented_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    own_keys: Tensor | None,
    own_values: Tensor | None,
    segments: Sequence[Segment],
    scale: float,
) -> Tensor:
    """Causal attention within segments, merged with keys that only one query sees.

    query                 [M, heads, d]
    key, value            [C, kv_heads, d]; heads is a multiple of kv_heads
    own_keys, own_values  [M, J, kv_heads, d]: J more keys for each query alone, or None
    segments              cover every query exactly once

    Returns [M, heads, d]. Equal to softmax attention over all of a query's keys at once.
    """
    result: Tensor = _SegmentedAttention.apply(query, key, value, own_keys, own_values, tuple(segments), scale)  # type: ignore[no-untyped-call]
    return result


def _blocks(segment: Segment) -> list[tuple[slice, bool]]:
    """The key ranges of a segment: what lies before the queries, then the queries' own slots (causal)."""
    own = segment.k_end - (segment.q_end - segment.q_start)
    blocks = [(slice(own, segment.k_end), True)]
    if own > segment.k_start:
        blocks.append((slice(segment.k_start, own), False))
    return blocks


def _has_flash(device: torch.device) -> bool:
    """Whether torch has a flash kernel here whose backward takes a merged output and log-sum-exp."""
    return device.type == "cpu"


def _heads_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1).unsqueeze(0)


def _block_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """[1, heads, n, d] -> output and log-sum-exp [1, heads, n]."""
    if _has_flash(q.device):
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
        return output, lse
    probs, lse = _scores(q, k, causal, scale)
    probs = (probs - lse.unsqueeze(-1)).exp_()
    return probs.to(v.dtype) @ _repeat(v, q), lse


def _block_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    if _has_flash(q.device):
        gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, output, lse, 0.0, causal, scale=scale
        )
        return gradients
    scores, _ = _scores(q, k, causal, scale)
    probs = (scores - lse.unsqueeze(-1)).exp_()
    delta = (grad.float() * output.float()).sum(-1, keepdim=True)
    grad_probs = grad.float() @ _repeat(v, q).float().transpose(-1, -2)
    grad_scores = (probs * (grad_probs - delta) * scale).to(q.dtype)
    return (
        grad_scores @ _repeat(k, q),
        _fold(grad_scores.transpose(-1, -2) @ q, k),
        _fold(probs.to(grad.dtype).transpose(-1, -2) @ grad, v),
    )


def _scores(q: Tensor, k: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    scores = (q @ _repeat(k, q).transpose(-1, -2)).float() * scale
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu_(1)
        scores = scores.masked_fill_(future, float("-inf"))
    return scores, scores.logsumexp(-1)


def _repeat(x: Tensor, like: Tensor) -> Tensor:
    return x.repeat_interleave(like.shape[1] // x.shape[1], dim=1)


def _fold(grad: Tensor, like: Tensor) -> Tensor:
    batch, heads, n, d = grad.shape
    return grad.view(batch, like.shape[1], heads // like.shape[1], n, d).sum(2)


class _SegmentedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        own_keys: Tensor | None,
        own_values: Tensor | None,
        segments: tuple[Segment, ...],
        scale: float,
    ) -> Tensor:
        m, heads, d = query.shape
        output = query.new_empty(m, heads, d)
        lse = query.new_empty(m, heads, dtype=torch.float32)
        for segment in segments:
            rows = slice(segment.q_start, segment.q_end)
            q = _heads_first(query[rows])
            merged: Tensor | None = None
            merged_lse: Tensor | None = None
            for keys, causal in _blocks(segment):
                part, part_lse = _block_forward(q, _heads_first(key[keys]), _heads_first(value[keys]), causal, scale)
                if merged is None or merged_lse is None:
                    merged, merged_lse = part, part_lse
                    continue
                total = torch.logaddexp(merged_lse, part_lse)
                merged = merged * _weight(merged_lse, total, part) + part * _weight(part_lse, total, part)
                merged_lse = total
            assert merged is not None
            assert merged_lse is not None
            output[rows] = merged[0].transpose(0, 1)
            lse[rows] = merged_lse[0].transpose(0, 1)
        if own_keys is not None and own_values is not None:
            scores = _own_scores(query, own_keys, scale)
            total = torch.logaddexp(lse, scores.logsumexp(-1))
            probs = (scores - total.unsqueeze(-1)).exp_().to(query.dtype)
            output *= (lse - total).exp_().unsqueeze(-1)
            output += _grouped("mngj,mjnd->mngd", probs, own_values, heads).reshape(m, heads, d)
            lse = total
        ctx.save_for_backward(query, key, value, own_keys, own_values, output, lse)
        ctx.segments, ctx.scale = segments, scale
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        query, key, value, own_keys, own_values, output, lse = ctx.saved_tensors
        grad, scale = grads[0].contiguous(), ctx.scale
        m, heads, d = query.shape
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        for segment in ctx.segments:
            rows = slice(segment.q_start, segment.q_end)
            # CPU flash attention reads lse as heads-last in memory: keep that stride.
            row_lse = lse[rows].transpose(0, 1).unsqueeze(0)
            parts = [_heads_first(x[rows]) for x in (grad, query, output)]
            total: Tensor | None = None
            for keys, causal in _blocks(segment):
                k, v = _heads_first(key[keys]), _heads_first(value[keys])
                dq, dk, dv = _block_backward(parts[0], parts[1], k, v, parts[2], row_lse, causal, scale)
                total = dq if total is None else total + dq
                grad_key[keys] += dk[0].transpose(0, 1)
                grad_value[keys] += dv[0].transpose(0, 1)
            assert total is not None
            grad_query[rows] = total[0].transpose(0, 1)
        grad_own_keys = grad_own_values = None
        if own_keys is not None:
            kv_heads = own_keys.shape[2]
            group = heads // kv_heads
            grouped_grad = grad.view(m, kv_heads, group, d)
            grouped_query = query.view(m, kv_heads, group, d)
            probs = (_own_scores(query, own_keys, scale) - lse.unsqueeze(-1)).exp_()
            probs = probs.view(m, kv_heads, group, own_keys.shape[1])
            grad_probs = torch.einsum("mngd,mjnd->mngj", grouped_grad, own_values).float()
            delta = (grad.float() * output.float()).sum(-1).view(m, kv_heads, group, 1)
            grad_scores = (probs * (grad_probs - delta) * scale).to(query.dtype)
            grad_query += torch.einsum("mngj,mjnd->mngd", grad_scores, own_keys).reshape(m, heads, d)
            grad_own_keys = torch.einsum("mngj,mngd->mjnd", grad_scores, grouped_query)
            grad_own_values = torch.einsum("mngj,mngd->mjnd", probs.to(grad.dtype), grouped_grad)
        return grad_query, grad_key, grad_value, grad_own_keys, grad_own_values, None, None


def _weight(lse: Tensor, total: Tensor, like: Tensor) -> Tensor:
    return (lse - total).exp().unsqueeze(-1).to(like.dtype)


def _grouped(equation: str, per_head: Tensor, per_group: Tensor, heads: int) -> Tensor:
    groups = per_group.shape[2]
    return torch.einsum(
        equation, per_head.view(per_head.shape[0], groups, heads // groups, per_head.shape[-1]), per_group
    )


def _own_scores(query: Tensor, own_keys: Tensor, scale: float) -> Tensor:
    """[M, heads, J] in float32."""
    m, heads, _ = query.shape
    return _grouped("mngd,mjnd->mngj", query, own_keys, heads).reshape(m, heads, own_keys.shape[1]).float() * scale
