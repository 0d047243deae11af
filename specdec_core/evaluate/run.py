"""Measure an opened run by its [eval] section."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from specdec_core.algorithm.proposal import Drafter
from specdec_core.checkpoint.open import OpenedRun
from specdec_core.data.conversations import read_conversations
from specdec_core.decode.text import PromptEncoder
from specdec_core.errors import UserError
from specdec_core.evaluate.evaluator import ALONE, EncodedPrompt, Evaluation, Method, evaluate
from specdec_core.evaluate.lookup import LookupDrafter
from specdec_core.evaluate.overlap import Overlap, overlap
from specdec_core.evaluate.prompts import PromptPack, spread

DRAFT = "draft"
LOOKUP = "n-gram lookup"


@dataclass(frozen=True)
class Measured:
    """An evaluation, which of its texts stand in the training text, and the type that the draft computed in.

    `overlaps` is empty if the training text is not at hand.
    """

    evaluation: Evaluation
    overlaps: dict[str, Overlap]
    draft_dtype: str


def evaluate_run(
    opened: OpenedRun,
    *,
    packs: Sequence[PromptPack] | None = None,
    num_draft_tokens: Sequence[int] = (),
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Measured:
    """Decode the prompts with the target alone, the draft and prompt lookup, for each of `num_draft_tokens`.

    What is not given is taken from the run's [eval] section.
    """
    config, target = opened.config, opened.target
    if packs is None:
        packs = [plugin.load() for plugin in opened.resolved.prompts]
    encoder = PromptEncoder(target, config.data.chat_template)
    prompts = [
        EncodedPrompt(prompt, encoder.encode(prompt.messages))
        for pack in packs
        for prompt in spread([*pack], config.eval.max_prompts)
    ]

    def drafter() -> Drafter:
        return opened.algorithm.drafter(opened.draft, target)

    ks = sorted(set(num_draft_tokens)) or [config.eval.num_draft_tokens]
    plan = opened.algorithm.capture_plan(target.facts)
    evaluation = evaluate(
        target,
        prompts,
        [*(Method(DRAFT, k, drafter, plan) for k in ks), *(Method(LOOKUP, k, LookupDrafter) for k in ks)],
        max_new_tokens=config.eval.max_new_tokens,
        temperature=config.eval.temperature,
        seed=config.eval.seed,
        target_step=opened.step if opened.trained_target else None,
        on_progress=on_progress,
    )
    return Measured(evaluation, _overlaps(opened, evaluation), opened.draft_dtype)


def _overlaps(opened: OpenedRun, evaluation: Evaluation) -> dict[str, Overlap]:
    files = opened.config.data.train
    try:
        conversations, _ = read_conversations(files, on_error="skip")
    except UserError:  # the training files may have stayed on another machine
        return {}
    if not conversations:
        return {}
    training = [str(m["content"]) for conversation in conversations for m in conversation.templated()]
    own = evaluation.of(ALONE)
    outputs = [opened.target.tokenizer.decode(result.tokens, skip_special_tokens=True) for result in own]
    return {
        "prompts": overlap([result.prompt.text for result in own], training),
        "outputs": overlap([str(output) for output in outputs], training),
    }
