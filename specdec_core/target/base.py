"""The contracts of a backbone (a model family) and of a target (one loaded model)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from specdec_core.capture.features import CapturePlan, Features
from specdec_core.config.run import TargetSection
from specdec_core.data.batch import Batch
from specdec_core.data.media import MediaProcessor
from specdec_core.errors import UserError
from specdec_core.nn.labels import ROWS_PER_CHUNK, LabelStats

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TargetFacts:
    """What is known of a target without its weights; enough to derive a draft from.

    `rope_parameters` are transformers' (`rope_type`, `rope_theta`, ...). Where the target has A axes of positions
    (M-RoPE), they say which axis each of a head's d rotary dimensions reads; dimension i and d/2 + i are rotated
    together, with frequency i:

    mrope_section      A numbers that sum to d/2. Without more: of each half, the first dimensions read the first
                       axis, the next ones the second, and so on (arXiv 2409.12191, section 2.1)
    mrope_interleaved  True: of each half, axis a > 0 has dimensions a, a + A, a + 2A, ..., as many as its section
                       says, and axis 0 the others
    mrope_layout       "doubled": the sections are twice as long and are laid over all d dimensions at once, so that the
                       two of a pair read different axes
    """

    name_or_path: str
    model_type: str
    hidden_size: int
    num_layers: int
    vocab_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: str
    rms_norm_eps: float
    max_position_embeddings: int
    rope_parameters: dict[str, Any]
    attention_bias: bool
    tie_word_embeddings: bool
    dtype: str
    bos_token_id: int | None
    stop_token_ids: tuple[int, ...] = field(default=())
    merged_embeds: bool = False
    """Whether a draft reads input embeddings from the features, images in place, rather than embedding ids again."""


@dataclass(frozen=True)
class Teacher:
    """The target's next-token distribution at N slots.

    logits  [N, D] over the rows asked for (D = V if none were named)
    log_z   [N] log-sum-exp over the whole vocabulary: logits - log_z are log-probabilities
    argmax  [N] int64 over the whole vocabulary
    """

    logits: Tensor
    log_z: Tensor
    argmax: Tensor


class DecodeSession(ABC):
    """One sequence being decoded, with its KV cache."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens in the cache."""

    @abstractmethod
    def prefill(self, batch: Batch) -> tuple[Tensor, Features]:
        """Read the prompt (one row, no padding). Returns the last slot's logits [V] and all slots' features."""

    @abstractmethod
    def forward(self, ids: Tensor, parents: Sequence[int] | None = None) -> tuple[Tensor, Features]:
        """Append `ids` [n] and return logits [n, V] and features of those slots, [1, n, ...].

        `parents[i]` < i is the index in `ids` of the token before ids[i], or -1 for the cache's end; None is a chain.
        Each slot sees its own path alone, at position = depth. Raises UserError if this target cannot read trees, or
        if the longest path does not fit into the session's capacity.
        """

    @abstractmethod
    def keep(self, path: Sequence[int]) -> None:
        """Of the slots of the last `forward`, keep those in `path` (ascending) and roll the others back."""


class Target(ABC):
    """A loaded target. Every method makes a fixed number of collectives, whatever the data.

    Where the algorithm trains the target, `embed`, `logits`, `label_loss` and `capture` carry gradients into its
    weights; what the other methods return is always detached.
    """

    facts: TargetFacts
    tokenizer: PreTrainedTokenizerBase
    device: str

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """[..., H] input embeddings of token ids, as the first decoder layer reads them."""

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V] from the post-norm hidden state [..., H]."""

    @abstractmethod
    def teacher(self, hidden: Tensor, rows: Tensor | None = None) -> Teacher:
        """The distribution at post-norm states [N, H], streamed over the vocabulary: no [N, V] is held
        unless `rows` is None. `rows` [D] are the target ids whose logits are wanted."""

    def teacher_chunks(self, hidden: Tensor, rows: Tensor | None, chunk_size: int) -> Iterator[Teacher]:
        """`teacher` for consecutive parts of `hidden`, one part at a time: what a step that holds no [N, D]
        reads. A target whose head is sharded gathers it once for all parts."""
        for part in torch.split(hidden, chunk_size):
            yield self.teacher(part, rows)

    def label_loss(self, hidden: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, LabelStats]:
        """Sum over rows of weight * cross-entropy of the target's head at post-norm states [R, H] against the tokens
        `labels` [R] int64, and the rows' statistics. No [R, V] is held. `weights` is [R] float32, without gradient.

        Default: by `logits`, a chunk of rows at a time, made again for the gradient.
        """

        def chunk(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.logits(hidden).float()
            return F.cross_entropy(logits, labels, reduction="none"), logits.detach().argmax(-1) == labels

        parts = zip(*(torch.split(x, ROWS_PER_CHUNK) for x in (hidden, labels)), strict=True)
        pairs = [checkpoint(chunk, *part, use_reentrant=False) for part in parts]
        loss, correct = (torch.cat(values) for values in zip(*pairs, strict=True))
        return torch.dot(loss, weights), LabelStats(loss.detach(), correct)

    @abstractmethod
    def embed_rows(self, ids: Tensor | None = None) -> Tensor:
        """A copy of rows of the embedding matrix, [n, H]; all rows if `ids` is None."""

    @abstractmethod
    def head_rows(self, ids: Tensor | None = None) -> Tensor:
        """A copy of rows of the head's matrix, [n, H]; all rows if `ids` is None."""

    @abstractmethod
    def layer_state(self, index: int) -> dict[str, Tensor]:
        """A copy of decoder layer `index`'s weights under HF's usual names (`self_attn.q_proj.weight`, ...);
        index L gives the final norm as `weight`. A norm's weight is what multiplies the normalised state."""

    @abstractmethod
    def capture(self, batch: Batch, plan: CapturePlan) -> Features:
        """Run the target over a batch, documents apart, and return what `plan` names."""

    @abstractmethod
    def decode(self, plan: CapturePlan, capacity: int) -> DecodeSession:
        """A new session with room for `capacity` tokens, whose features follow `plan`.

        A tree's branches beside its longest path need room besides; the session makes it.
        """

    @abstractmethod
    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, extras: Sequence[Mapping[str, Tensor]] = ()
    ) -> list[list[int]]:
        """Greedy continuations of a batch of prompts, each with its stop token if it came to one.

        `extras` are the further model inputs of each prompt (see `Batch.extras`); empty: all are text.
        """


class Backbone(ABC):
    """A model family: how its targets are read and loaded. Made with the plugin's validated options."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def facts(self, target: TargetSection) -> TargetFacts:
        """What the target's config says, without loading weights. Raises UserError if there is no such target."""

    @abstractmethod
    def tokenizer(self, target: TargetSection) -> PreTrainedTokenizerBase:
        """The target's tokenizer with its chat template."""

    def media(self, target: TargetSection) -> MediaProcessor | None:
        """How the target reads images and videos; no weights are loaded. Default: None, it reads text only."""
        return None

    @abstractmethod
    def load(self, target: TargetSection, device: str) -> Target:
        """The target with its weights, frozen, in evaluation mode."""

    def module(self, target: Target) -> nn.Module:
        """The module whose parameters are the weights of a target loaded here, for what trains and keeps them:
        engine and checkpoint. An algorithm holds no backbone and never sees it. Default: UserError."""
        raise UserError(f"{type(self).__name__} cannot have its targets trained; choose an algorithm that does not")

    def save(self, target: Target, directory: Path) -> None:
        """Write a target loaded here into an empty directory, its present weights in its own type and its tokenizer,
        such that `load` and others read it; read it back and compare. Default: UserError, as for `module`."""
        raise UserError(f"{type(self).__name__} cannot save its targets")
