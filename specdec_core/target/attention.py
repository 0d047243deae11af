"""Attention of a transformers model that knows which slots belong together.

Transformers lets an attention function and the function that makes its mask be registered by name. Ours
computes each document by itself, so that no [S, S] mask exists, lets the query heads that share a
key-value head read it without copying it, and verifies trees of draft tokens. Where it has nothing to add
it hands over to SDPA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from specdec_core.data.batch import PADDING_DOCUMENT

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "specdec"
SHARED_KEY_QUERIES = 64
"""Up to this many queries, those of the heads that share a key-value head are computed as one product."""

Span = tuple[int, int]


@dataclass(frozen=True)
class Documents:
    """For each row of a batch, the slots [start, stop) of its documents. Padding belongs to none."""

    rows: tuple[tuple[Span, ...], ...]

    @classmethod
    def of(cls, document_ids: Tensor) -> Documents:
        """Read from `document_ids` [B, S]."""
        rows = []
        for row in document_ids:
            values, lengths = torch.unique_consecutive(row, return_counts=True)
            stops = lengths.cumsum(0).tolist()
            spans = zip([0, *stops[:-1]], stops, values.tolist(), strict=True)
            rows.append(tuple((start, stop) for start, stop, value in spans if value != PADDING_DOCUMENT))
        return cls(tuple(rows))


@dataclass(frozen=True)
class Tree:
    """n new slots that form a tree: `depths` [n] from 0, `ancestors` [n, n] bool, each slot among its own.

    `height` counts the slots of the longest path.
    """

    depths: Tensor
    ancestors: Tensor
    height: int

    @classmethod
    @lru_cache(maxsize=16)  # a drafter's tree is often the same in every round
    def of(cls, parents: tuple[int, ...], device: str) -> Tree:
        """`parents[i]` < i is the slot before slot i, or -1."""
        ancestors = torch.eye(len(parents), dtype=torch.bool)
        for slot, parent in enumerate(parents):
            if not -1 <= parent < slot:
                raise ValueError(f"slot {slot} of a tree has parent {parent}; a parent comes before its children")
            if parent >= 0:
                ancestors[slot] |= ancestors[parent]
        lengths = ancestors.sum(dim=1)
        return cls((lengths - 1).to(device), ancestors.to(device), int(lengths.max()))


_layout: ContextVar[Documents | Tree | None] = ContextVar("layout", default=None)


@contextmanager
def layout(value: Documents | Tree | None) -> Iterator[None]:
    """Within the block, forwards of models that use this attention follow `value`."""
    token = _layout.set(value)
    try:
        yield
    finally:
        _layout.reset(token)


def install(model: PreTrainedModel) -> bool:
    """Let `model` use this attention if it uses SDPA; returns whether it now does."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)
    return bool(model.config._attn_implementation == NAME)


@dataclass(frozen=True)
class _DocumentMask:
    """What the model passes to each attention layer in place of a mask tensor."""

    documents: Documents
    window: int | None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """query [B, heads, S, d], key and value [B, key-value heads, S, d] -> [B, S, heads, d]; 0 at padding."""
        output = query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3])
        for row, spans in enumerate(self.documents.rows):
            for start, stop in spans:
                part = (slice(row, row + 1), slice(None), slice(start, stop))
                mask = self._band(stop - start, query.device)
                attended = F.scaled_dot_product_attention(
                    query[part], key[part], value[part], mask, is_causal=mask is None, scale=scaling, enable_gqa=True
                )
                output[row : row + 1, start:stop] = attended.transpose(1, 2)
        return output

    def _band(self, length: int, device: torch.device) -> Tensor | None:
        """[length, length] bool of a document longer than the window; None if causality is all."""
        if self.window is None or length <= self.window:
            return None
        ones = torch.ones(length, length, dtype=torch.bool, device=device)
        return ones.tril() & ones.triu(1 - self.window)


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Any:
    """The mask interface. `local_size` is the window of the layers that the mask is for, None without one."""
    current = _layout.get()
    if isinstance(current, Documents) and "allow_is_bidirectional_skip" not in kwargs:  # not a vision tower's
        return _DocumentMask(current, local_size)
    if isinstance(current, Tree):
        # `mask_function` compares positions; slots at one depth share theirs.
        past = kv_length - q_length
        at = past + current.depths
        keys = torch.cat([torch.arange(past, device=device), at])
        zero = torch.zeros(1, 1, 1, 1, dtype=torch.int64, device=device)
        assert mask_function is not None
        mask = mask_function(zero, zero, at[None, None, :, None], keys[None, None, None, :])
        mask = mask.expand(1, 1, q_length, kv_length).clone()
        mask[..., past:] &= current.ancestors
    else:
        mask = sdpa_mask(
            batch_size, q_length, kv_length, q_offset, kv_offset, mask_function,
            local_size=local_size, use_vmap=use_vmap, device=device, **kwargs,
        )  # fmt: skip
    if mask is None:
        return None
    # Once here rather than in every layer; a finite minimum keeps rows without any key from becoming NaN.
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention interface: query [B, heads, n, d], key and value [B, key-value heads, T, d] -> [B, n, heads, d]."""
    if isinstance(attention_mask, _DocumentMask):
        return attention_mask.attend(query, key, value, scaling), None
    batch, heads, count, size = query.shape
    shared = heads // key.shape[1]
    if attention_mask is None or shared == 1 or count > SHARED_KEY_QUERIES or kwargs.get("position_bias") is not None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
        return output, None
    grouped = query.reshape(batch, key.shape[1], shared * count, size)
    rows, total = attention_mask.shape[0], attention_mask.shape[3]
    mask = attention_mask.expand(rows, shared, count, total).reshape(rows, 1, shared * count, total)
    output = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
    return output.view(batch, heads, count, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
