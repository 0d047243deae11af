"""Chain and tree drafting: every head guesses from the target's last hidden state alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec_core.algorithm.proposal import Drafter, Proposal, Sampling, Verified
from specdec_core.errors import UserError
from specdec_medusa.config import MedusaConfig
from specdec_medusa.model import MedusaDraft
from specdec_medusa.trees import Choices, best_tree, in_order


@dataclass(frozen=True)
class Layout:
    """n nodes, parents first: head and rank of each node's token, on the draft's device, and parents, on the CPU.

    `width` is how many guesses of a head are needed.
    """

    heads: Tensor
    ranks: Tensor
    parents: Tensor
    width: int

    @classmethod
    def of(cls, choices: Choices, device: torch.device) -> Layout:
        """`choices` in order (see `trees.in_order`)."""
        place = {path: node for node, path in enumerate(choices)}
        return cls(
            torch.tensor([len(path) - 1 for path in choices], device=device),
            torch.tensor([path[-1] for path in choices], device=device),
            torch.tensor([place.get(path[:-1], -1) for path in choices]),
            1 + max(path[-1] for path in choices),
        )


class MedusaDrafter(Drafter):
    """Holds one state, that of the last accepted slot, so that there is nothing to forget."""

    def __init__(self, draft: MedusaDraft, options: MedusaConfig) -> None:
        """Raises UserError if paths ask for more guesses of a head than the draft can say tokens."""
        self.draft, self.options = draft, options
        self.hidden: Tensor | None = None
        self.depth = min(draft.num_heads, options.heads)
        depths = () if options.tree == "chain" else range(1, self.depth + 1)
        self.layouts = {depth: self._layout(depth) for depth in depths}
        needed = max((layout.width for layout in self.layouts.values()), default=0)
        if needed > draft.config["draft_vocab_size"]:
            raise UserError(
                f"algorithm.tree asks for {needed} guesses of one head; the draft can say "
                f"{draft.config['draft_vocab_size']} tokens; use a smaller tree"
            )

    def _layout(self, depth: int) -> Layout:
        """The tree that is drafted where so many tokens are asked for."""
        tree, device = self.options.tree, self.draft.maps[0].device
        assert tree != "chain"
        if isinstance(tree, int):
            widest = self.draft.config["draft_vocab_size"]
            return Layout.of(best_tree(tree, self.options.accuracies[:depth], widest), device)
        return Layout.of(in_order([path for path in tree if len(path) <= depth]), device)

    def begin(self, verified: Verified) -> None:
        """A new sequence."""
        self.accept(verified)

    def accept(self, verified: Verified) -> None:
        """Keep the state of the last slot."""
        assert verified.features.last_hidden is not None
        self.hidden = self.draft.project_hidden_states(verified.features.last_hidden[:, -1])

    def propose(self, num_tokens: int, sampling: Sampling) -> Proposal:
        """A chain of one token from each of the first `num_tokens` heads, or a tree of that depth.

        Above temperature 0 a chain is drawn from the heads' own distributions; a tree is always their top tokens.
        """
        assert self.hidden is not None
        depth = min(num_tokens, self.depth)
        logits = torch.cat([self.draft.head_logits(head, self.hidden) for head in range(depth)]).float()
        if self.layouts:
            layout = self.layouts[depth]
            top = logits.topk(layout.width, dim=-1).indices
            return Proposal(self.draft.target_ids(top[layout.heads, layout.ranks]), layout.parents)
        if sampling.temperature == 0:
            return Proposal(self.draft.target_ids(logits.argmax(-1)))
        distribution = (logits / sampling.temperature).softmax(-1)
        choice = distribution.multinomial(1, generator=sampling.generator).squeeze(1)
        return Proposal(self.draft.target_ids(choice), probs=self.draft.over_target_vocabulary(distribution))
