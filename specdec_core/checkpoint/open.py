"""What decoding begins with: a target, and a trained draft from disk or an algorithm that needs none."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from specdec_core.algorithm.base import Algorithm, TrainedAlgorithm, TrainingFreeAlgorithm
from specdec_core.algorithm.draft import Draft
from specdec_core.algorithm.load import load_algorithm, load_trained
from specdec_core.algorithm.proposal import Drafter
from specdec_core.capture.features import CapturePlan
from specdec_core.checkpoint import store
from specdec_core.checkpoint.versions import essential_differences
from specdec_core.checkpoint.weights import find_checkpoint, load_target_weights, load_weights, vocab_of
from specdec_core.config.load import problem_report, validate_config
from specdec_core.config.overrides import apply_overrides
from specdec_core.config.run import RunConfig
from specdec_core.data.media import MediaProcessor
from specdec_core.decode.text import PromptEncoder
from specdec_core.engine.device import choose_device
from specdec_core.engine.masters import cast_parameters
from specdec_core.errors import UserError
from specdec_core.nn import int8
from specdec_core.registry.lock import Lock
from specdec_core.registry.registry import Registry
from specdec_core.registry.resolve import ResolvedRun, resolve, resolve_file
from specdec_core.target.base import Backbone, Target

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened(ABC):
    """A target, and an algorithm that is ready to propose for it.

    draft_dtype  the type that the draft computes in, one of `eval.draft_dtype`; None if there is no draft
    """

    resolved: ResolvedRun
    backbone: Backbone
    target: Target
    algorithm: Algorithm
    draft_dtype: str | None

    @property
    def config(self) -> RunConfig:
        """The run config."""
        return self.resolved.config

    @property
    def plan(self) -> CapturePlan:
        """What a drafter reads of the target."""
        return self.algorithm.capture_plan(self.target.facts)

    @property
    def target_step(self) -> int | None:
        """The optimizer step of the target's weights, if the run trained it."""
        return None

    @abstractmethod
    def drafter(self) -> Drafter:
        """A drafter for one sequence."""

    @property
    def media(self) -> MediaProcessor | None:
        """How the target reads images and videos; None if it reads text only."""
        return self.backbone.media(self.config.target)

    def encoder(self) -> PromptEncoder:
        """From messages to what the target reads, images by the policy of [data]."""
        data, media = self.config.data, self.media
        if media is None:
            return PromptEncoder(self.target, data.chat_template)
        from specdec_core.data.prepare import media_reader  # brings what training data needs, slow to import

        return PromptEncoder(self.target, data.chat_template, media_reader(data, media))


@dataclass(frozen=True)
class OpenedConfig(Opened):
    """An algorithm without training."""

    algorithm: TrainingFreeAlgorithm

    def drafter(self) -> Drafter:
        """A drafter for one sequence."""
        return self.algorithm.drafter(self.target)


@dataclass(frozen=True)
class OpenedRun(Opened):
    """A draft, in evaluation mode, with the target it was trained for, both on `target.device`.

    path            the checkpoint that was read
    step            the optimizer step of its weights
    trained_target  whether the run trained the target: then the target has the checkpoint's weights too
    """

    algorithm: TrainedAlgorithm
    draft: Draft
    path: Path
    step: int
    trained_target: bool

    @property
    def target_step(self) -> int | None:
        """The optimizer step of the target's weights, if the run trained it."""
        return self.step if self.trained_target else None

    def drafter(self) -> Drafter:
        """A drafter for one sequence."""
        return self.algorithm.drafter(self.draft, self.target)


def is_config(path: Path) -> bool:
    """Whether a path is meant as a config; what was trained lies in a directory."""
    return path.suffix == ".toml" or path.is_file()


def open_for_decoding(path: Path, registry: Registry, *, overrides: Sequence[str] = ()) -> Opened:
    """`open_run`, or `open_config` if `path` is a config."""
    return (open_config if is_config(path) else open_run)(path, registry, overrides=overrides)


def open_config(path: Path, registry: Registry, *, overrides: Sequence[str] = ()) -> OpenedConfig:
    """Load the target of a config whose algorithm needs no training.

    `overrides` are `section.key=value`. Raises UserError if the config is wrong or its algorithm has to be trained.
    """
    resolved, algorithm = read_untrained(path, registry, overrides=overrides)
    backbone: Backbone = resolved.backbone.load()
    return OpenedConfig(resolved, backbone, _load_target(backbone, resolved), algorithm, None)


def read_untrained(
    path: Path, registry: Registry, *, overrides: Sequence[str] = ()
) -> tuple[ResolvedRun, TrainingFreeAlgorithm]:
    """The same without the target: a config and its algorithm."""
    resolved = resolve_file(path, list(overrides), registry)
    algorithm = load_algorithm(resolved.algorithm)
    if isinstance(algorithm, TrainedAlgorithm):
        raise UserError(
            f'{path}: algorithm "{resolved.algorithm.spec.name}" proposes with a trained draft, and a config holds '
            f"none; give the run directory that `specdec train {path}` makes, {resolved.config.train.output_dir}"
        )
    return resolved, algorithm


def open_run(
    path: Path, registry: Registry, *, overrides: Sequence[str] = (), draft_dtype: str | None = None
) -> OpenedRun:
    """Rebuild what a checkpoint was saved from. `path` is a run directory (its newest checkpoint) or a checkpoint.

    `overrides` are `section.key=value`, as on the command line; `engine.device` says where to load. `draft_dtype` is
    one of `eval.draft_dtype`, None what the config says. Raises UserError if there is no checkpoint, if it was
    damaged, or if the overrides or the target do not fit it.
    """
    place = find_checkpoint(path)
    checkpoint = store.load(place)
    raw = dict(checkpoint.config)
    messages = apply_overrides(raw, overrides)
    config, problems = validate_config(raw)
    if config is None or messages:
        raise problem_report(place, problems, messages)
    lock = Lock.model_validate(checkpoint.lock)
    resolved = resolve(config, registry, lock, overrides)
    for sentence in essential_differences(lock, resolved.lock):
        log.warning("%s: %s", place, sentence)
    algorithm = load_trained(resolved.algorithm)
    backbone: Backbone = resolved.backbone.load()
    target = _load_target(backbone, resolved)
    with torch.random.fork_rng(devices=[]):
        draft = algorithm.build_draft(checkpoint.draft_config, target, vocab_of(checkpoint.vocab))
    load_weights(draft, checkpoint.draft, str(place))
    if checkpoint.target:
        load_target_weights(backbone.module(target), checkpoint.target, str(place))
    draft_dtype = draft_dtype or config.eval.draft_dtype or config.train.dtype
    if draft_dtype == "int8" and not int8.available(target.device):
        log.warning('eval.draft_dtype = "int8" needs an x86 CPU; the draft computes in %s', config.train.dtype)
        draft_dtype = config.train.dtype
    cast_parameters(draft, torch.float32 if draft_dtype == "int8" else getattr(torch, draft_dtype))
    draft.requires_grad_(False).to(target.device).eval()
    if draft_dtype == "int8":
        int8.quantize_linear(draft)
    return OpenedRun(
        resolved=resolved,
        backbone=backbone,
        target=target,
        algorithm=algorithm,
        draft=draft,
        path=place,
        step=checkpoint.step,
        draft_dtype=draft_dtype,
        trained_target=bool(checkpoint.target),
    )


def _load_target(backbone: Backbone, resolved: ResolvedRun) -> Target:
    device = choose_device(getattr(resolved.engine.options, "device", "auto"))
    return backbone.load(resolved.config.target, device)
