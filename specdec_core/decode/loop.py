"""The decoding loop: a drafter proposes, the target verifies."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec_core.algorithm.proposal import Drafter, Proposal, Sampling, Verified
from specdec_core.capture.features import CapturePlan
from specdec_core.data.batch import Batch
from specdec_core.decode.clock import Clock
from specdec_core.decode.verify import accept_greedy, accept_sampled, distribution
from specdec_core.errors import UserError
from specdec_core.target.base import Target


@dataclass(frozen=True, slots=True)
class Emission:
    """What one forward of the target gave.

    tokens          the tokens emitted; a stop token is the last of its text and is included
    accepted        how many of them, from the first, were the drafter's; the target's own token follows
    proposed        draft tokens verified; those beyond a stop token in the accepted ones do not count
    draft_seconds   drafter: reading what was last accepted, and proposing (of the prefill: `begin`)
    target_seconds  target: forward, acceptance, rolling back
    prefill         whether the forward was the one that read the prompt
    """

    tokens: tuple[int, ...]
    accepted: int
    proposed: int
    draft_seconds: float
    target_seconds: float
    prefill: bool = False


@torch.inference_mode()
def decode(
    target: Target,
    drafter: Drafter | None,
    prompt_ids: Sequence[int],
    *,
    plan: CapturePlan | None = None,
    num_draft_tokens: int = 4,
    max_new_tokens: int = 128,
    stop_token_ids: Sequence[int] = (),
    sampling: Sampling | None = None,
) -> Generator[Emission, None, None]:
    """Decode one prompt, yielding after each forward of the target.

    The text is the target's own: token for token with temperature 0, in distribution above. `drafter` None is the
    target alone, in the same session and loop. `plan` is what the drafter reads of the target. The text ends with the
    first of `stop_token_ids`, after exactly `max_new_tokens` tokens, or where the target's context is full.
    No more tokens are verified than can still be emitted; a drafter that proposes more is cut short.
    Raises UserError if the prompt is empty or fills the context, or if a proposal is a tree.
    """
    sampling = sampling or Sampling()
    stops = frozenset(stop_token_ids)
    limit = _token_limit(target, len(prompt_ids), max_new_tokens)
    session = target.decode(plan or CapturePlan(), len(prompt_ids) + limit)
    clock = Clock(target.device)

    start = clock.mark()
    prompt = torch.tensor(prompt_ids, dtype=torch.int64, device=target.device)
    logits, features = session.prefill(prompt_batch(prompt))
    last = _next_token(logits, sampling)
    token = int(last)
    remaining = limit - 1
    done = token in stops or remaining == 0
    read = clock.mark()
    if drafter and not done:
        drafter.begin(Verified(ids=torch.cat([prompt, last]), features=features, start=0))
    end = clock.mark()
    yield Emission((token,), 0, 0, clock.seconds(read, end), clock.seconds(start, read), prefill=True)

    verified: Verified | None = None
    while not done:
        start = clock.mark()
        ids, probs = last, None
        if drafter:
            if verified:
                drafter.accept(verified)
            # The target's own token needs room too: with one token left there is nothing to draft.
            budget = min(num_draft_tokens, remaining - 1)
            if budget > 0:
                proposal = _chain(drafter.propose(budget, sampling), budget)
                ids, probs = torch.cat([last, proposal.tokens]), proposal.probs
        drafted = clock.mark()

        position = session.length
        logits, features = session.forward(ids)
        accepted, last = _verify(ids[1:], logits, probs, sampling)
        # The round's only transfer to the host.
        count, token, *proposed = torch.cat([accepted, last, ids[1:]]).tolist()
        session.keep(range(count + 1))
        verified = Verified(torch.cat([ids[: count + 1], last]), features.select(slice(0, count + 1)), position)
        end = clock.mark()

        tokens = [*proposed[:count], token]
        num_proposed = len(proposed)
        stop = next((i for i, emitted in enumerate(tokens) if emitted in stops), None)
        if stop is not None and stop < count:
            tokens = tokens[: stop + 1]
            count = num_proposed = stop + 1
        remaining -= len(tokens)
        done = stop is not None or remaining == 0
        yield Emission(tuple(tokens), count, num_proposed, clock.seconds(start, drafted), clock.seconds(drafted, end))


def _token_limit(target: Target, prompt_length: int, max_new_tokens: int) -> int:
    """How many tokens may be emitted: prompt and text together fit the target's context."""
    context = target.facts.max_position_embeddings
    if prompt_length == 0:
        raise UserError("the prompt is empty: give at least one token to continue from")
    if prompt_length >= context:
        raise UserError(
            f"the prompt has {prompt_length} tokens and the target's context holds {context}; shorten the prompt"
        )
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    return min(max_new_tokens, context - prompt_length)


def prompt_batch(prompt: Tensor) -> Batch:
    """A prompt's ids [S] as the one row that a session reads."""
    ids = prompt.unsqueeze(0)
    return Batch(
        ids=ids,
        positions=torch.arange(prompt.numel(), device=prompt.device).unsqueeze(0),
        loss_mask=torch.zeros_like(ids, dtype=torch.bool),
        document_ids=torch.zeros_like(ids),
    )


def _next_token(logits: Tensor, sampling: Sampling) -> Tensor:
    """[1] int64: the token after a slot with logits [V]."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    return distribution(logits, sampling.temperature).multinomial(1, generator=sampling.generator)


def _verify(tokens: Tensor, logits: Tensor, probs: Tensor | None, sampling: Sampling) -> tuple[Tensor, Tensor]:
    if sampling.temperature == 0:
        return accept_greedy(tokens, logits)
    return accept_sampled(tokens, distribution(logits, sampling.temperature), probs, sampling.generator)


def _chain(proposal: Proposal, budget: int) -> Proposal:
    """The first `budget` tokens of a chain."""
    if proposal.parents is not None:
        raise UserError("the drafter proposed a tree, and only chains can be verified; configure it to draft a chain")
    probs = proposal.probs
    if probs is not None and len(probs) != proposal.tokens.numel():
        raise ValueError(f"a proposal of {proposal.tokens.numel()} tokens came with {len(probs)} distributions")
    return Proposal(proposal.tokens[:budget], probs=None if probs is None else probs[:budget])
