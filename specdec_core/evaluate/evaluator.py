"""Decode prompts with the target alone and with drafters, in one run, and compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from specdec_core.algorithm.proposal import Drafter, Sampling
from specdec_core.capture.features import CapturePlan
from specdec_core.data.batch import Batch
from specdec_core.data.conversations import MAX_REPORTED
from specdec_core.decode.loop import Emission, decode
from specdec_core.errors import UserError, UserErrors
from specdec_core.evaluate.compare import Comparison, compare, logit_gap
from specdec_core.evaluate.prompts import Prompt
from specdec_core.evaluate.tally import Tally
from specdec_core.target.base import Target

WARM_UP_TOKENS = 8


class EvaluationError(UserError):
    """An output is not the target's own."""


@dataclass(frozen=True)
class Method:
    """A way of decoding. `drafter` makes one for a sequence; None is the target alone."""

    name: str
    num_draft_tokens: int = 0
    drafter: Callable[[], Drafter] | None = None
    plan: CapturePlan | None = None


ALONE = Method("target alone")


@dataclass(frozen=True)
class Result:
    """One prompt decoded by one method; `comparison` is None for the target alone and for sampled text."""

    method: Method
    prompt: Prompt
    tokens: tuple[int, ...]
    tally: Tally
    comparison: Comparison | None = None


@dataclass(frozen=True)
class Conditions:
    """What a figure must be quoted with.

    target_step  the optimizer step of the target's weights if the run trained it, else None
    prompts      how many, by category
    """

    target: str
    target_step: int | None
    prompts: Mapping[str, int]
    max_new_tokens: int
    temperature: float
    seed: int
    dtype: str
    device: str
    threads: int
    torch: str


@dataclass(frozen=True)
class Evaluation:
    """Every prompt decoded by every method."""

    conditions: Conditions
    methods: tuple[Method, ...]
    results: tuple[Result, ...]

    def of(self, method: Method, category: str | None = None) -> list[Result]:
        """The results of a method, on one category of prompts or on all."""
        return [r for r in self.results if r.method is method and category in (None, r.prompt.category)]

    def tally(self, method: Method, category: str | None = None) -> Tally:
        """The same, added up."""
        return Tally.total(result.tally for result in self.of(method, category))

    def speedup(self, method: Method, category: str | None = None) -> float:
        """Tokens per second of the decode phase, over those of the target alone on the same prompts."""
        alone = self.tally(ALONE, category).tokens_per_second
        return self.tally(method, category).tokens_per_second / alone if alone else 0.0

    def best(self, name: str) -> Method:
        """Of the methods of a name, one for each k, the fastest."""
        return max((method for method in self.methods if method.name == name), key=self.speedup)

    def check(self) -> None:
        """Raise EvaluationError if a greedy output differs from the target's own by more than a tie.

        Only float32 can tell: types of less precision round differently for each number of tokens in a forward, by
        more than a tie allows.
        """
        compared = [r for r in self.results if r.comparison]
        wrong = [(r, r.comparison) for r in compared if r.comparison and r.comparison.verdict == "different"]
        if not wrong or self.conditions.dtype != "float32":
            return
        result, comparison = wrong[0]
        apart = "" if comparison.gap is None else f", where the tokens' logits lie {comparison.gap:.2g} apart"
        raise EvaluationError(
            f"{len(wrong)} of {len(compared)} greedy outputs differ from the target's own; the first: "
            f"{result.method.name}, k = {result.method.num_draft_tokens}, prompt {result.prompt.id}, "
            f"token {comparison.position}{apart}; decoding was not lossless, so none of these figures counts"
        )


def evaluate(
    target: Target,
    prompts: Sequence[Prompt],
    encode: Callable[[Prompt], Batch],
    methods: Sequence[Method],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    target_step: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Decode every prompt with the target alone and with every method.

    The methods take turns on each prompt, in reverse order on every other one, so that a machine that slows down or
    speeds up meanwhile favours none; a short decoding by each, not measured, comes before. `encode` gives what the
    target reads, one row; it is asked twice for each prompt, so that the images of all are never held at once.
    `on_progress` is told how many decodings of how many are done; `target_step` is for the conditions. Raises UserError
    if there are no prompts, and UserErrors naming those that cannot be encoded or fill the context.
    """
    _check(target, prompts, encode)
    methods = (ALONE, *methods)

    def run(method: Method, batch: Batch, limit: int, seed: int) -> list[Emission]:
        emissions = decode(
            target,
            method.drafter() if method.drafter else None,
            batch,
            plan=method.plan,
            num_draft_tokens=method.num_draft_tokens,
            max_new_tokens=limit,
            stop_token_ids=target.facts.stop_token_ids,
            sampling=Sampling(temperature, torch.Generator(target.device).manual_seed(seed)),
        )
        return list(emissions)

    first = encode(prompts[0])
    for method in methods:
        run(method, first, min(WARM_UP_TOKENS, max_new_tokens), seed)
    results: list[Result] = []
    for index, prompt in enumerate(prompts):
        batch = encode(prompt)
        emitted: dict[int, list[Emission]] = {}
        turns = range(len(methods))
        for turn in turns if index % 2 == 0 else reversed(turns):
            emitted[turn] = run(methods[turn], batch, max_new_tokens, seed + index)
            on_progress(index * len(methods) + len(emitted), len(prompts) * len(methods))
        texts = {turn: tuple(token for e in emitted[turn] for token in e.tokens) for turn in turns}
        for turn in turns:
            comparison = None
            if turn and temperature == 0:
                comparison = _compare(target, batch, texts[0], texts[turn])
            results.append(Result(methods[turn], prompt, texts[turn], Tally.of(emitted[turn]), comparison))

    conditions = Conditions(
        target=target.facts.name_or_path,
        target_step=target_step,
        prompts=dict(Counter(prompt.category for prompt in prompts)),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        dtype=target.facts.dtype,
        device=target.device,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )
    return Evaluation(conditions, methods, tuple(results))


def _check(target: Target, prompts: Sequence[Prompt], encode: Callable[[Prompt], Batch]) -> None:
    """Better now than after an hour."""
    context = target.facts.max_position_embeddings
    if not prompts:
        raise UserError("there are no prompts to evaluate on: name some in eval.prompts or with --prompts")
    problems: list[str] = []
    for prompt in prompts:
        try:
            length = encode(prompt).ids.shape[1]
        except UserError as error:
            problems.append(f"prompt {prompt.id}: {error}")
        else:
            if length >= context:
                problems.append(
                    f"prompt {prompt.id} has {length} tokens and the target's context holds {context}; leave it out"
                )
        if len(problems) == MAX_REPORTED:
            break
    if problems:
        raise UserErrors(problems)


def _compare(target: Target, prompt: Batch, own: tuple[int, ...], other: tuple[int, ...]) -> Comparison:
    return compare(own, other, lambda position, a, b: logit_gap(target, prompt, own[:position], a, b))
