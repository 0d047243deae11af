"""Measure an opened run by its [eval] section."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Sequence
from dataclasses import dataclass
from functools import partial

from specdec_core.algorithm.base import TrainedAlgorithm
from specdec_core.algorithm.load import load_algorithm
from specdec_core.checkpoint.open import Opened
from specdec_core.data.conversations import Conversation, LineError, read_conversations
from specdec_core.data.media import MediumKind
from specdec_core.errors import UserError
from specdec_core.evaluate.evaluator import ALONE, Evaluation, Method, evaluate
from specdec_core.evaluate.overlap import Overlap, overlap
from specdec_core.evaluate.prompts import PromptPack, spread
from specdec_core.registry.resolve import ResolvedPlugin
from specdec_core.target.base import Target

DRAFT = "draft"


@dataclass(frozen=True)
class Measured:
    """An evaluation, which of its texts stand in the training text, and the type that the draft computed in.

    `overlaps` is empty if the training text is not at hand, `draft_dtype` None if there is no draft.
    """

    evaluation: Evaluation
    overlaps: dict[str, Overlap]
    draft_dtype: str | None


def evaluate_run(
    opened: Opened,
    *,
    packs: Sequence[PromptPack] | None = None,
    num_draft_tokens: Sequence[int] = (),
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Measured:
    """Decode the prompts with the target alone, the draft and the baselines, for each of `num_draft_tokens`.

    What is not given is taken from the run's [eval] section. Raises UserError if a baseline would have to be trained.
    """
    config, target = opened.config, opened.target
    ks = sorted(set(num_draft_tokens)) or [config.eval.num_draft_tokens]
    methods = [Method(DRAFT, k, opened.drafter, opened.plan) for k in ks]
    for plugin in opened.resolved.baselines:
        methods += _baseline(plugin, target, ks, {ALONE.name, *(method.name for method in methods)})
    if packs is None:
        packs = [plugin.load() for plugin in opened.resolved.prompts]
    encoder = opened.encoder()
    evaluation = evaluate(
        target,
        [prompt for pack in packs for prompt in spread([*pack], config.eval.max_prompts)],
        lambda prompt: encoder.encode(prompt.messages, prompt.directory),
        methods,
        max_new_tokens=config.eval.max_new_tokens,
        temperature=config.eval.temperature,
        seed=config.eval.seed,
        target_step=opened.target_step,
        on_progress=on_progress,
    )
    return Measured(evaluation, _overlaps(opened, evaluation), opened.draft_dtype)


def _baseline(plugin: ResolvedPlugin, target: Target, ks: Sequence[int], taken: Container[str]) -> list[Method]:
    """An algorithm without training, for each k; called by its title and the options that are not its defaults."""
    algorithm = load_algorithm(plugin)
    if isinstance(algorithm, TrainedAlgorithm):
        raise UserError(
            f'eval.baselines: algorithm "{plugin.spec.name}" has to be trained, and a baseline is measured as it is; '
            "name one without training"
        )
    changed = plugin.options.model_dump(mode="json", exclude_defaults=True)
    title = algorithm.title or plugin.spec.name
    if changed:
        title += f" ({', '.join(f'{key} = {value}' for key, value in changed.items())})"
    if title in taken:
        raise UserError(f'eval.baselines: two ways of decoding are called "{title}"; leave one of them out')
    plan = algorithm.capture_plan(target.facts)
    return [Method(title, k, partial(algorithm.drafter, target), plan) for k in ks]


def _texts(conversation: Conversation, kinds: Collection[MediumKind]) -> list[str]:
    """Of the messages as training read them; none of a conversation that it left out for its media."""
    try:
        conversation.templated(kinds)
    except LineError:
        return []
    return ["".join(message.texts) for message in conversation.messages]


def _overlaps(opened: Opened, evaluation: Evaluation) -> dict[str, Overlap]:
    files = opened.config.data.train
    try:
        conversations, _ = read_conversations(files, on_error="skip")
    except UserError:  # the training files may have stayed on another machine
        return {}
    if not conversations:
        return {}
    media = opened.media
    kinds = () if media is None else media.markers.keys()
    training = [text for conversation in conversations for text in _texts(conversation, kinds)]
    own = evaluation.of(ALONE)
    outputs = [opened.target.tokenizer.decode(result.tokens, skip_special_tokens=True) for result in own]
    return {
        "prompts": overlap([result.prompt.text for result in own], training),
        "outputs": overlap([str(output) for output in outputs], training),
    }
