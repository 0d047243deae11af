"""Acceptance: how many of a chain's draft tokens stand, and which token follows them.

Both rules are lossless: what is emitted is distributed exactly as the target alone would emit it.
"""

from __future__ import annotations

from torch import Generator, Tensor, rand, softmax, where, zeros_like


def distribution(logits: Tensor, temperature: float) -> Tensor:
    """[..., V] float32 probabilities of logits [..., V] at a temperature above 0."""
    return softmax(logits.float() / temperature, dim=-1)


def accept_greedy(tokens: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the longest prefix of `tokens` that the target would have chosen itself.

    tokens [n] int64, logits [n + 1, V] of the target: row i says what follows the first i tokens.
    Returns how many stand [1] and the token that the target puts after them [1], both int64 and on the device.
    """
    argmax = logits.argmax(dim=-1)
    accepted = (tokens == argmax[:-1]).cumprod(0).sum(dim=0, keepdim=True)
    return accepted, argmax.index_select(0, accepted)


def accept_sampled(
    tokens: Tensor, target_probs: Tensor, draft_probs: Tensor | None, generator: Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Rejection sampling (Leviathan et al., arXiv:2211.17192, algorithm 1; Chen et al., arXiv:2302.01318).

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
    uniform = rand(n, generator=generator, device=p.device, dtype=p.dtype)
    accepted = (uniform * q < p).cumprod(0).sum(dim=0, keepdim=True)

    row = target_probs.index_select(0, accepted)
    last = accepted.clamp(max=n - 1)  # stands in for the row that a chain accepted whole does not have
    if draft_probs is None:
        proposed = zeros_like(row).scatter_(1, columns.index_select(0, last), 1.0)
    else:
        proposed = draft_probs.index_select(0, last)
    residual = (row - proposed * (accepted < n)).clamp_(min=0)
    # Rounding can reject where p and q are equal and nothing is left; p itself is then what remains.
    residual = where(residual.sum() > 0, residual, row)
    return accepted, residual.multinomial(1, generator=generator).view(1)
