"""Acceptance: which draft tokens stand, and which token follows them.

Every rule is lossless: what is emitted is distributed exactly as the target alone would emit it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from specdec_core.algorithm.proposal import Sampling
from specdec_core.decode.tree import DraftTree
from specdec_core.errors import UserError


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one forward over the token in hand (slot 0) and a proposal (the slots after it) shows.

    slots   those that stand, ascending from 0
    tokens  what stands at the others, then the target's own
    last    [1] int64: the target's own, on the device
    """

    slots: Sequence[int]
    tokens: list[int]
    last: Tensor

    @property
    def index(self) -> slice | Tensor:
        """`slots` as an index of tensors on the device: a slice where they have no gap."""
        if self.slots[-1] == len(self.slots) - 1:
            return slice(0, len(self.slots))
        return torch.tensor(self.slots, device=self.last.device)


def verify(tokens: Tensor, tree: DraftTree | None, logits: Tensor, probs: Tensor | None, sampling: Sampling) -> Verdict:
    """Judge a chain, or a tree of n nodes, with one transfer to the host.

    tokens  [n] int64
    logits  [n + 1, V] of the target after the root, the token in hand, and after each of `tokens`
    probs   [n, V] what the tokens were drawn from; None for a deterministic proposal

    Raises UserError for a tree that was drawn and ValueError for one with twins (see `DraftTree.descend`).
    """
    if tree is not None:
        return _verify_tree(tokens, tree, logits, probs, sampling)
    if sampling.temperature == 0:
        accepted, last = accept_greedy(tokens, logits)
    else:
        accepted, last = accept_sampled(tokens, distribution(logits, sampling.temperature), probs, sampling.generator)
    count, token, *drafted = torch.cat([accepted, last, tokens]).tolist()
    return Verdict(range(count + 1), [*drafted[:count], token], last)


def _verify_tree(tokens: Tensor, tree: DraftTree, logits: Tensor, probs: Tensor | None, sampling: Sampling) -> Verdict:
    """The target chooses a token after every slot, greedily or by drawing it, and its choices lead down the tree.

    Each draw is from the target's own distribution at its slot, and which slots are met depends on the draws above
    them alone. So what is emitted is exact.
    """
    if probs is not None and sampling.temperature > 0:
        raise UserError(
            "the drafter sampled a tree, and above temperature 0 only deterministic trees can be verified; "
            "configure it to draft a chain"
        )
    following = next_tokens(logits, sampling)
    both = torch.cat([following, tokens]).tolist()
    count = tokens.numel() + 1
    slots = tree.descend(tokens=both[count:], following=both[:count])
    end = slots[-1]
    return Verdict(slots, [both[slot] for slot in slots], following[end : end + 1])


def next_tokens(logits: Tensor, sampling: Sampling) -> Tensor:
    """[n] int64: the token that the target itself puts after each slot with logits [n, V]."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    return distribution(logits, sampling.temperature).multinomial(1, generator=sampling.generator).squeeze(1)


def distribution(logits: Tensor, temperature: float) -> Tensor:
    """[..., V] float32 probabilities of logits [..., V] at a temperature above 0."""
    return torch.softmax(logits.float() / temperature, dim=-1)


def accept_greedy(tokens: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the longest prefix of the chain `tokens` that the target would have chosen itself.

    tokens [n] int64, logits [n + 1, V] of the target: row i says what follows the first i tokens.
    Returns how many stand [1] and the token that the target puts after them [1], both int64 and on the device.
    """
    argmax = logits.argmax(dim=-1)
    accepted = (tokens == argmax[:-1]).cumprod(0).sum(dim=0, keepdim=True)
    return accepted, argmax.index_select(0, accepted)


def accept_sampled(
    tokens: Tensor, target_probs: Tensor, draft_probs: Tensor | None, generator: Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Rejection sampling of a chain (Leviathan et al., arXiv:2211.17192, algorithm 1; Chen et al., arXiv:2302.01318).

    tokens [n] int64, token i drawn from draft_probs[i]; draft_probs [n, V], None for a deterministic proposal (all
    mass on the token); target_probs [n + 1, V]. Token i is accepted with probability min(1, p_i / q_i). After the
    first rejection, at i, the next token is drawn from max(0, p_i - q_i) normalised; with none, from p_n.
    Returns as `accept_greedy` does.
    """
    n = tokens.numel()
    if n == 0:
        return tokens.new_zeros(1), target_probs.multinomial(1, generator=generator).view(1)
    columns = tokens.unsqueeze(1)
    p = target_probs[:-1].gather(1, columns).squeeze(1)
    q = 1.0 if draft_probs is None else draft_probs.gather(1, columns).squeeze(1)
    uniform = torch.rand(n, generator=generator, device=p.device, dtype=p.dtype)
    accepted = (uniform * q < p).cumprod(0).sum(dim=0, keepdim=True)

    row = target_probs.index_select(0, accepted)
    last = accepted.clamp(max=n - 1)  # stands in for the row that a chain accepted whole does not have
    if draft_probs is None:
        proposed = torch.zeros_like(row).scatter_(1, columns.index_select(0, last), 1.0)
    else:
        proposed = draft_probs.index_select(0, last)
    residual = (row - proposed * (accepted < n)).clamp_(min=0)
    # Rounding can reject where p and q are equal and nothing is left; p itself is then what remains.
    residual = torch.where(residual.sum() > 0, residual, row)
    return accepted, residual.multinomial(1, generator=generator).view(1)
