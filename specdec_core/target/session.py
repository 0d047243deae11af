"""Decoding one sequence with a KV cache that rolls back without being rebuilt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from specdec_core.capture.features import CapturePlan, Features
from specdec_core.data.batch import Batch
from specdec_core.errors import UserError
from specdec_core.target.attention import Tree, layout
from specdec_core.target.base import DecodeSession

if TYPE_CHECKING:
    from specdec_core.target.hf import HFTarget


class _Buffer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values [1, heads, capacity, d] of one layer, written in place.

    It keeps every slot whatever the layer's window, so that the last slots can be dropped again; the
    model's own mask confines the attention of a sliding layer.
    """

    is_croppable = True
    keys: Tensor
    values: Tensor

    def __init__(self, capacity: int, is_sliding: bool) -> None:
        super().__init__()
        self.capacity = capacity
        self.is_sliding = is_sliding
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate `capacity` slots; on the first update, when head count and size are known."""
        self.keys = key_states.new_empty((*key_states.shape[:2], self.capacity, key_states.shape[3]))
        self.values = value_states.new_empty((*value_states.shape[:2], self.capacity, value_states.shape[3]))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append [1, heads, n, d]; returns views of all slots so far."""
        start = self.length
        self.length += key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        elif self.length > self.keys.shape[2]:
            filled = [buffer[:, :, :start] for buffer in (self.keys, self.values)]
            self.lazy_initialization(key_states, value_states)
            self.keys[:, :, :start], self.values[:, :, :start] = filled
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Slots that `query_length` new queries will see, and the first of them."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Slots so far."""
        return self.length

    def get_max_length(self) -> int:
        """Slots that there is room for."""
        return self.capacity

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last slots; transformers passes their number negated."""
        self.length -= abs(tokens_to_remove)

    def keep(self, start: int, path: Sequence[int]) -> None:
        """Of the slots from `start` on keep those at `start + path`, moved together."""
        self.length = start + len(path)
        if list(path) != list(range(len(path))):
            slots = start + torch.tensor(path, device=self.keys.device)
            for buffer in (self.keys, self.values):
                buffer[:, :, start : self.length] = buffer[:, :, slots]


class HFDecodeSession(DecodeSession):
    """A session on a transformers model. Use within one thread; its tensors take no part in autograd."""

    def __init__(self, target: HFTarget, plan: CapturePlan, capacity: int) -> None:
        self.target = target
        self.plan = plan
        self.capacity = capacity
        self._buffers = [_Buffer(capacity, sliding) for sliding in target.sliding_layers()]
        self._cache = Cache(layers=list(self._buffers))
        self._length = 0
        self._appended = 0
        self._ahead = 0

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._length

    @torch.inference_mode()
    def prefill(self, batch: Batch) -> tuple[Tensor, Features]:
        """Read the prompt (one row, no padding). Returns the last slot's logits [V] and all slots' features."""
        if batch.ids.shape[0] != 1:
            raise ValueError(f"a session decodes one sequence, the batch has {batch.ids.shape[0]} rows")
        count = batch.ids.shape[1]
        last_hidden, features = self._run(self.target.model_inputs(batch), count, count)
        # Where an image stands, positions and slots part: what follows the prompt goes on from its last position.
        self._ahead = int(batch.positions[..., -1].max()) + 1 - self._length
        return self.target.logits(last_hidden[0, -1]), features

    @torch.inference_mode()
    def forward(self, ids: Tensor, parents: Sequence[int] | None = None) -> tuple[Tensor, Features]:
        """Append `ids` [n] and return logits [n, V] and features of those slots, [1, n, ...].

        `parents[i]` < i is the index in `ids` of the token before ids[i], or -1 for the cache's end.
        """
        count = ids.shape[0]
        tree = None if parents is None or _is_chain(parents) else Tree.of(tuple(parents), self.target.device)
        if tree is not None and not self.target.knows_layouts:
            raise UserError('a tree of draft tokens can be verified only with target.attention = "sdpa"')
        start = self._length + self._ahead
        inputs = self.target.continuation_inputs(ids, start, None if tree is None else tree.depths)
        with layout(tree):
            last_hidden, features = self._run(inputs, count, count if tree is None else tree.height)
        return self.target.logits(last_hidden[0]), features

    @torch.inference_mode()
    def keep(self, path: Sequence[int]) -> None:
        """Of the slots of the last `forward`, keep those in `path` (ascending) and roll the others back."""
        start = self._length - self._appended
        if list(path) != sorted(set(path)) or (path and not 0 <= path[0] <= path[-1] < self._appended):
            raise ValueError(f"{list(path)} is no ascending path through the last {self._appended} slots")
        for buffer in self._buffers:
            buffer.keep(start, path)
        self._length = start + len(path)
        self._appended = 0

    def _run(self, inputs: dict[str, Any], count: int, height: int) -> tuple[Tensor, Features]:
        """Append `count` slots, of which a path holds at most `height`, the rest being gone after the next `keep`.

        Returns the post-norm states [1, count, H] and what the plan asks for.
        """
        if self._length + height > self.capacity:
            raise UserError(
                f"the sequence would grow to {self._length + height} tokens; "
                f"this session was opened with room for {self.capacity}"
            )
        for buffer in self._buffers:
            buffer.capacity = max(buffer.capacity, self.capacity + count - height)
        result = self.target.run(inputs, self.plan, past_key_values=self._cache)
        self._length += count
        self._appended = count
        return result


def _is_chain(parents: Sequence[int]) -> bool:
    return list(parents) == list(range(-1, len(parents) - 1))
