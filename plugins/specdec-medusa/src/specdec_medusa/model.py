"""The Medusa draft (arXiv 2401.10774, section 2.1.1): heads beside the target's own.

Head i: n residual layers x + SiLU(W x + b), then a linear map to the draft vocabulary. All read the target's last
hidden state. W and b start at zero, so that a head whose map is the target's starts as the target's head: up to what a
family does to its logits besides. A scale or a soft-cap keeps the order of the tokens; a bias of the head is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specdec_core.algorithm.vocabulary import VocabDraft
from specdec_core.data.vocab import VocabMap
from specdec_core.nn.linear import Linear
from specdec_core.target.base import Target


class ResidualBlock(nn.Module):
    """n layers x + SiLU(W x + b)."""

    def __init__(self, hidden: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Linear(hidden, hidden) for _ in range(layers)])
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        for layer in self.layers:
            x = x + F.silu(layer(x))
        return x


class MedusaDraft(VocabDraft):
    """The draft. `config` is its HF-style config; `vocab` is None for the target's whole vocabulary."""

    row_of: Tensor | None

    def __init__(self, config: Mapping[str, Any], target: Target, vocab: VocabMap | None) -> None:
        super().__init__(config, target, vocab)
        hidden, heads = config["hidden_size"], config["num_heads"]
        self.blocks = nn.ModuleList([ResidualBlock(hidden, config["num_hidden_layers"]) for _ in range(heads)])
        self.lm_heads = nn.ModuleList([Linear(hidden, config["draft_vocab_size"], bias=False) for _ in range(heads)])
        row_of = None
        if vocab is not None:
            rows = torch.arange(vocab.ids.numel(), device=vocab.ids.device)
            row_of = vocab.ids.new_full((vocab.size,), -1).index_copy_(0, vocab.ids, rows)
        self.register_buffer("row_of", row_of, persistent=False)

    @property
    def num_heads(self) -> int:
        """How many tokens ahead, beyond the target's own next one, the draft guesses."""
        return len(self.blocks)

    @property
    def maps(self) -> list[nn.Parameter]:
        """[D, H] each: the heads' linear maps."""
        return [head.get_parameter("weight") for head in self.lm_heads]

    def rows_of(self, tokens: Tensor) -> Tensor:
        """Target ids [...] int64 -> the heads' rows that stand for them; -1 where the draft cannot say them."""
        return tokens if self.row_of is None else self.row_of[tokens]

    def project_hidden_states(self, hidden: Tensor) -> Tensor:
        """[..., H] the target's last hidden state, in the draft's own type."""
        return hidden.to(self.maps[0].dtype)

    def backbone(self, embeds: Tensor, hidden: Tensor, attention: Any, positions: Tensor, cache: Any = None) -> Tensor:
        """`hidden` [B, S, H] as it is: the target itself is what lies below the heads."""
        return hidden

    def head_state(self, head: int, hidden: Tensor) -> Tensor:
        """[..., H] what a head's linear map reads."""
        state: Tensor = self.blocks[head](hidden)
        return state

    def head_logits(self, head: int, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., D] over the draft vocabulary."""
        logits: Tensor = self.lm_heads[head](self.head_state(head, hidden))
        return logits

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """[B, S, H] -> [K, B, S, D]."""
        return torch.stack([self.head_logits(head, hidden) for head in range(self.num_heads)])
