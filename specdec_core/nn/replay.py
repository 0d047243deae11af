"""Simulated acceptance length: what chain drafting would have accepted on given text."""

from __future__ import annotations

from torch import Tensor


def simulated_acceptance_length(matches: Tensor, starts: Tensor, documents: Tensor) -> tuple[int, int]:
    """Replay greedy chain drafting: from slot t accept the run of n matches, then go on from slot t + n + 1.

    matches    [K, N] bool: whether the k-th drafted token from slot t is right
    starts     [N] bool: slots at which a cycle can begin
    documents  [N] int64: a cycle chain begins anew at every document

    Returns (tokens, cycles); tokens / cycles is the acceptance length, the bonus token included. It is not
    a mean over slots, because cycles do not begin at every slot equally often.
    """
    runs = (matches.long().cumprod(0).sum(0) + 1).tolist()
    begins = starts.tolist()
    document_of = documents.tolist()
    tokens = cycles = slot = 0
    while slot < len(runs):
        if not begins[slot]:
            slot += 1
            continue
        tokens += runs[slot]
        cycles += 1
        end = slot + runs[slot]
        document = document_of[slot]
        slot += 1
        while slot < end and slot < len(runs) and document_of[slot] == document:
            slot += 1
    return tokens, cycles
