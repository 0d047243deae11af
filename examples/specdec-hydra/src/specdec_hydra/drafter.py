"""How Hydra heads propose: a chain, greedily, each head reading the guesses of those before it."""

import torch
from torch import Tensor

from specdec_core.algorithm.proposal import Drafter, Proposal, Sampling, Verified
from specdec_hydra.model import HydraDraft


class HydraDrafter(Drafter):
    """Keeps the target's last state [1, H] and the token [1] after it. There is no cache to roll back."""

    hidden: Tensor
    token: Tensor

    def __init__(self, draft: HydraDraft) -> None:
        self.draft = draft

    def begin(self, verified: Verified) -> None:
        """A new text."""
        self.accept(verified)

    def accept(self, verified: Verified) -> None:
        """Go on from the last slot that the target has read."""
        assert verified.features.last_hidden is not None
        self.hidden = verified.features.last_hidden[0, -1:]
        self.token = verified.ids[-1:]

    def propose(self, num_tokens: int, sampling: Sampling) -> Proposal:
        """As many tokens as there are heads, at most. Without `probs` they stand for themselves at any temperature."""
        tokens = [self.token]
        embeds = self.hidden[:, :0]
        for _ in range(min(num_tokens, len(self.draft.heads))):
            embeds = torch.cat([embeds, self.draft.embed_input_ids(tokens[-1])], dim=-1)
            logits = self.draft.compute_logits(self.draft.backbone(embeds, self.hidden))
            tokens.append(logits.argmax(dim=-1))
        return Proposal(torch.cat(tokens[1:]))
