"""From a resolved config to everything that a training loop needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec_core.algorithm.base import TrainedAlgorithm
from specdec_core.capture.features import CapturePlan, Features
from specdec_core.capture.source import FeatureSource
from specdec_core.checkpoint.rng import seed_everything
from specdec_core.checkpoint.store import Checkpoint
from specdec_core.checkpoint.weights import SavedDraft, read_saved_draft, vocab_of
from specdec_core.config.run import RunConfig
from specdec_core.data.batch import Batch
from specdec_core.data.dataset import flat
from specdec_core.data.loader import BatchLoader
from specdec_core.data.packing import Rows
from specdec_core.data.prepare import prepare_dataset
from specdec_core.data.vocab import VocabMap, count_supervised
from specdec_core.engine.base import Engine, StepModule
from specdec_core.errors import UserError
from specdec_core.registry.resolve import ResolvedRun
from specdec_core.target.base import Backbone, Target, TargetFacts
from specdec_core.train.progress import SECONDS_BETWEEN_LINES


@dataclass(frozen=True)
class Job:
    """A training job, assembled and not yet begun. `vocab` is None for the target's whole vocabulary."""

    resolved: ResolvedRun
    engine: Engine
    algorithm: TrainedAlgorithm
    backbone: Backbone
    facts: TargetFacts
    step: StepModule
    draft_config: dict[str, Any]
    vocab: VocabMap | None
    source: FeatureSource
    loader: BatchLoader
    validation: BatchLoader | None
    total_batches: int
    total_steps: int

    @property
    def config(self) -> RunConfig:
        """The run config."""
        return self.resolved.config


def assemble(
    resolved: ResolvedRun, algorithm: TrainedAlgorithm, checkpoint: Checkpoint | None, say: Callable[[str], object]
) -> Job:
    """Build the job, the quick and fallible parts first. Raises UserError for whatever the user can mend.

    With a checkpoint the draft vocabulary is the checkpoint's, and the draft's weights are left for it to set.
    """
    config = resolved.config
    if not config.data.train:
        raise UserError("data.train names no file; give at least one JSONL file of conversations")
    if algorithm.trains_target:
        _check_trainable(config)
    engine: Engine = resolved.engine.load()
    engine.start()
    seed_everything(config.train.seed)

    backbone: Backbone = resolved.backbone.load()
    facts = backbone.facts(config.target)
    plan = algorithm.capture_plan(facts)
    draft_config = algorithm.draft_config(facts, config.draft)
    saved = None
    if config.draft.init_from and checkpoint is None:
        saved = read_saved_draft(config.draft.init_from, facts.vocab_size)

    loader, validation = _loaders(config, engine, backbone, facts, say)
    vocab = vocab_of(checkpoint.vocab) if checkpoint else _vocab(draft_config, loader.rows, facts, saved)

    say(f"loading {config.target.path} on {engine.device}")
    target = backbone.load(config.target, engine.device)
    draft = algorithm.build_draft(draft_config, target, vocab)
    if saved is not None:
        saved.load_into(draft, algorithm)
    source = _source(resolved, plan, target)
    if saved is None and checkpoint is None and config.draft.init != "random":
        algorithm.init_draft(draft, target)
        if config.draft.init == "fitted":
            say(f"fitting the draft's start to at most {config.draft.fit_tokens:,} tokens")
            algorithm.fit_draft(draft, target, _sample(loader, source, engine.device, config.draft.fit_tokens, say))
    module = None
    if algorithm.trains_target:
        # Captured in the step, with gradients; nothing before it.
        module, source = backbone.module(target), FeatureSource(target, CapturePlan())
    step = StepModule(algorithm, draft, target, module)

    total_batches = -int(-config.train.epochs * len(loader) // 1)
    total_steps = -(-total_batches // config.train.accumulation)
    if config.train.max_steps is not None:
        total_steps = min(total_steps, config.train.max_steps)
    engine.prepare(step, config.train, total_steps)
    return Job(
        resolved=resolved,
        engine=engine,
        algorithm=algorithm,
        backbone=backbone,
        facts=facts,
        step=step,
        draft_config=draft_config,
        vocab=vocab,
        source=source,
        loader=loader,
        validation=validation,
        total_batches=total_batches,
        total_steps=total_steps,
    )


def _check_trainable(config: RunConfig) -> None:
    """Raises UserError for what a target that is trained rules out."""
    name = config.algorithm.name
    if config.cache is not None:
        raise UserError(
            f'cache: algorithm "{name}" trains the target, and features kept from an earlier step would be of weights '
            "that are no more; leave [cache] out"
        )
    if config.target.dtype == "float16":
        raise UserError(
            f'target.dtype: algorithm "{name}" trains the target, whose gradients float16 cannot hold; '
            'set it to "bfloat16" or "float32"'
        )


def _loaders(
    config: RunConfig, engine: Engine, backbone: Backbone, facts: TargetFacts, say: Callable[[str], object]
) -> tuple[BatchLoader, BatchLoader | None]:
    tokenizer = backbone.tokenizer(config.target)
    media = backbone.media(config.target)

    def loader(split: str, files: Sequence[Path]) -> BatchLoader:
        prepared = prepare_dataset(config.data, files, tokenizer, facts.stop_token_ids, split=split, media=media)
        _check_vocabulary(prepared.rows, facts, split)
        say(f"data.{split}: {prepared.report.summary()}")
        return BatchLoader(
            prepared.rows,
            config.train.batch_size,
            seed=config.train.seed,
            rank=engine.rank,
            world_size=engine.world_size,
            shuffle=split == "train",
        )

    validation = loader("validation", config.data.validation) if config.data.validation else None
    return loader("train", config.data.train), validation


def _check_vocabulary(rows: Rows, facts: TargetFacts, split: str) -> None:
    columns = rows.dataset.select_columns(["ids"]).with_format("arrow")
    highest = max(int(flat(part["ids"]).max()) for part in columns.iter(batch_size=1000))
    if highest >= facts.vocab_size:
        raise UserError(
            f"data.{split}: the tokenizer of {facts.name_or_path} gives token id {highest}, but the target's "
            f"vocabulary ends at {facts.vocab_size - 1}; use the tokenizer that belongs to the target"
        )


def _vocab(draft_config: dict[str, Any], rows: Rows, facts: TargetFacts, saved: SavedDraft | None) -> VocabMap | None:
    """The draft vocabulary: that of the weights it starts from, or the most frequent supervised tokens."""
    size = draft_config.get("draft_vocab_size") or facts.vocab_size
    if saved is not None:
        saved_size = facts.vocab_size if saved.vocab is None else saved.vocab.ids.numel()
        if saved_size != size:
            raise UserError(
                f"draft.init_from: {saved.path} has a draft vocabulary of {saved_size}, this run one of {size}; "
                f"set draft.vocab_size = {saved_size}"
            )
        return saved.vocab
    if size == facts.vocab_size:
        return None
    counts = count_supervised(rows.dataset, facts.vocab_size)
    return VocabMap.from_counts(counts, size, always=facts.stop_token_ids)


def _source(resolved: ResolvedRun, plan: CapturePlan, target: Target) -> FeatureSource:
    cache = resolved.cache.load() if resolved.cache else None
    return FeatureSource(target, plan, cache, resolved.config.target.revision)


def _sample(
    loader: BatchLoader, source: FeatureSource, device: str, tokens: int, say: Callable[[str], object]
) -> Iterator[tuple[Batch, Features]]:
    """Batches of the first epoch, in its order, until they hold `tokens` tokens; the loader itself stays put."""
    read, last = 0, time.monotonic()
    for batch in loader.rewound():
        moved = batch.to(device)
        yield moved, source.features(moved)
        read += batch.num_tokens
        if read >= tokens:
            return
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"fitting: {read:,} tokens read")
