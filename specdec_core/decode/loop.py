"""The decoding loop: a drafter proposes, the target verifies."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec_core.algorithm.proposal import Drafter, Proposal, Sampling, Verified
from specdec_core.capture.features import CapturePlan
from specdec_core.data.batch import Batch
from specdec_core.decode.clock import Clock
from specdec_core.decode.tree import DraftTree
from specdec_core.decode.verify import next_tokens, verify
from specdec_core.errors import UserError
from specdec_core.target.base import Target


@dataclass(frozen=True, slots=True)
class Emission:
    """What one forward of the target gave.

    tokens          the tokens emitted; a stop token is the last of its text and is included
    accepted        how many of them, from the first, were the drafter's; the target's own token follows
    proposed        how many could have been accepted: a chain's draft tokens, a tree's depth
    nodes           draft tokens verified, on all branches; a chain's are `proposed`
    draft_seconds   drafter: reading what was last accepted, and proposing (of the prefill: `begin`)
    target_seconds  target: forward, acceptance, rolling back
    prefill         whether the forward was the one that read the prompt

    What was drafted beyond a stop token in the accepted ones counts neither in `proposed` nor in `nodes`.
    """

    tokens: tuple[int, ...]
    accepted: int
    proposed: int
    nodes: int
    draft_seconds: float
    target_seconds: float
    prefill: bool = False


@torch.inference_mode()
def decode(
    target: Target,
    drafter: Drafter | None,
    prompt: Batch | Sequence[int],
    *,
    plan: CapturePlan | None = None,
    num_draft_tokens: int = 4,
    max_new_tokens: int = 128,
    stop_token_ids: Sequence[int] = (),
    sampling: Sampling | None = None,
) -> Generator[Emission, None, None]:
    """Decode one prompt, yielding after each forward of the target.

    `prompt` is token ids, or a batch of one row with all that the target reads (see `PromptEncoder`).
    The text is the target's own: token for token with temperature 0, in distribution above. `drafter` None is the
    target alone, in the same session and loop. `plan` is what the drafter reads of the target. The text ends with the
    first of `stop_token_ids`, after exactly `max_new_tokens` tokens, or where the target's context is full.
    `num_draft_tokens` is the length of a chain and the depth of a tree, which may hold more nodes. No more is verified
    than can still be emitted: what a drafter proposes beyond that is cut off.
    Raises UserError if the prompt is empty or fills the context, or if a proposal is a tree that the target cannot
    verify; ValueError if it is malformed (see `Proposal`), or if the batch has several rows.
    """
    sampling = sampling or Sampling()
    stops = frozenset(stop_token_ids)
    batch = prompt if isinstance(prompt, Batch) else prompt_batch(torch.tensor(prompt, dtype=torch.int64))
    if len(batch.ids) != 1:
        raise ValueError(f"a prompt is one row, the batch has {len(batch.ids)}")
    length = batch.ids.shape[1]
    limit = _token_limit(target, length, max_new_tokens)
    session = target.decode(plan or CapturePlan(), length + limit)
    clock = Clock(target.device)

    start = clock.mark()
    batch = batch.to(target.device)
    logits, features = session.prefill(batch)
    last = next_tokens(logits.unsqueeze(0), sampling)
    token = int(last)
    remaining = limit - 1
    done = token in stops or remaining == 0
    read = clock.mark()
    if drafter and not done:
        drafter.begin(Verified(torch.cat([batch.ids[0], last]), features, 0, batch.positions[..., 0, :]))
    end = clock.mark()
    yield Emission((token,), 0, 0, 0, clock.seconds(read, end), clock.seconds(start, read), prefill=True)

    verified: Verified | None = None
    while not done:
        start = clock.mark()
        ids, probs, tree = last, None, None
        if drafter:
            if verified:
                drafter.accept(verified)
            # The target's own token needs room too: with one token left there is nothing to draft.
            budget = min(num_draft_tokens, remaining - 1)
            if budget > 0:
                proposal, tree = _within(drafter.propose(budget, sampling), budget)
                ids, probs = torch.cat([last, proposal.tokens]), proposal.probs
        drafted = clock.mark()

        position = session.length
        logits, features = session.forward(ids, None if tree is None else tree.slots)
        verdict = verify(ids[1:], tree, logits, probs, sampling)
        session.keep(verdict.slots)
        last, stands = verdict.last, verdict.index
        rotary = positions_after(batch, position, len(verdict.slots))
        verified = Verified(torch.cat([ids[stands], last]), features.select(stands), position, rotary)
        end = clock.mark()

        tokens, nodes = verdict.tokens, ids.numel() - 1
        accepted, proposed = len(tokens) - 1, nodes if tree is None else tree.depth
        stop = next((i for i, emitted in enumerate(tokens) if emitted in stops), None)
        if stop is not None and stop < accepted:
            tokens = tokens[: stop + 1]
            accepted = proposed = stop + 1
            nodes = proposed if tree is None else len(tree.nodes_within(proposed))
        remaining -= len(tokens)
        done = stop is not None or remaining == 0
        seconds = clock.seconds(start, drafted), clock.seconds(drafted, end)
        yield Emission(tuple(tokens), accepted, proposed, nodes, *seconds)


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


def prompt_batch(prompt: Tensor, positions: Tensor | None = None, extras: Mapping[str, Tensor] | None = None) -> Batch:
    """A prompt's ids [S] as the one row that a session reads.

    `positions` is [S] or [A, S], None for those of text; `extras` are the further inputs of the target.
    """
    if positions is None:
        positions = torch.arange(prompt.numel(), device=prompt.device)
    ids = prompt.unsqueeze(0)
    return Batch(
        ids=ids,
        positions=positions.unsqueeze(-2),
        loss_mask=torch.zeros_like(ids, dtype=torch.bool),
        document_ids=torch.zeros_like(ids),
        extras=dict(extras or {}),
    )


def positions_after(prompt: Batch, start: int, count: int) -> Tensor:
    """[count], or [A, count] on the prompt's axes: rotary positions from slot `start` on of the text after a prompt.

    They go on from the prompt's highest position, by one a token.
    """
    ahead = prompt.positions.max() + 1 - prompt.ids.shape[1]
    counted = torch.arange(start, start + count, device=prompt.ids.device) + ahead
    return counted.expand(*prompt.positions.shape[:-2], -1)


def _within(proposal: Proposal, budget: int) -> tuple[Proposal, DraftTree | None]:
    """What lies within the first `budget` tokens of a proposal, and its shape if that branches.

    Raises ValueError if the proposal's parts do not fit together.
    """
    tokens, parents, probs = proposal.tokens, proposal.parents, proposal.probs
    count = tokens.numel()
    if probs is not None and len(probs) != count:
        raise ValueError(f"a proposal of {count} tokens came with {len(probs)} distributions")
    if parents is None:
        return Proposal(tokens[:budget], probs=None if probs is None else probs[:budget]), None
    if parents.numel() != count:
        raise ValueError(f"a proposal of {count} tokens came with {parents.numel()} parents")
    tree = DraftTree.of(parents.tolist())
    nodes = tree.nodes_within(budget)
    if len(nodes) < count:
        tree, kept = tree.pruned(nodes), torch.tensor(nodes, device=tokens.device)
        tokens, probs = tokens[kept], None if probs is None else probs[kept]
    return Proposal(tokens, probs=probs), None if tree.is_chain else tree
