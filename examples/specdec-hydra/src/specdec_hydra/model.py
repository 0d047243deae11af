"""The Hydra draft (arXiv 2402.05109, section 3): heads in sequence, each reading the tokens guessed before it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specdec_core.algorithm.draft import Draft
from specdec_core.target.base import Target


class HydraDraft(Draft):
    """Head i, from 0: h + SiLU(W [h; e_1; ...; e_(1+i)] + b).

    h is the target's last hidden state at a slot, and e_j embeds the token j slots later. The embedding and the map to
    tokens are the target's, as `Draft` has them. Weights start at zero, each head as one that copies h.
    """

    def __init__(self, config: Mapping[str, Any], target: Target) -> None:
        super().__init__(target)
        self.config = dict(config)
        size = config["hidden_size"]
        self.heads = nn.ModuleList([nn.Linear((2 + i) * size, size) for i in range(config["num_heads"])])
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def backbone(
        self,
        embeds: Tensor,
        hidden: Tensor,
        attention: Any = None,
        positions: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """The state [..., H] that the target may have n slots later.

        hidden  [..., H] the target's last hidden state, in the target's type
        embeds  [..., n*H] of the n tokens after it, side by side; n chooses the head

        Slots do not see each other: `attention`, `positions` and `cache` are not read.
        """
        read = torch.cat([hidden, embeds], dim=-1)
        head = self.heads[embeds.shape[-1] // hidden.shape[-1] - 1]
        change: Tensor = head(read.to(head.get_parameter("weight").dtype))
        return hidden + F.silu(change).to(hidden.dtype)
