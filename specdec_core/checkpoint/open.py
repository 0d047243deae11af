"""A run or checkpoint on disk to a target and its draft in memory: what evaluation and export begin with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from specdec_core.algorithm.base import Algorithm
from specdec_core.algorithm.draft import Draft
from specdec_core.checkpoint import store
from specdec_core.checkpoint.versions import essential_differences
from specdec_core.checkpoint.weights import find_checkpoint, load_target_weights, load_weights, vocab_of
from specdec_core.config.load import problem_report, validate_config
from specdec_core.config.overrides import apply_overrides
from specdec_core.config.run import RunConfig
from specdec_core.engine.device import choose_device
from specdec_core.engine.masters import cast_parameters
from specdec_core.nn.int8 import quantize_linear
from specdec_core.registry.lock import Lock
from specdec_core.registry.registry import Registry
from specdec_core.registry.resolve import ResolvedRun, resolve
from specdec_core.target.base import Backbone, Target

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenedRun:
    """A draft, in evaluation mode, with the target it was trained for, both on `target.device`.

    path            the checkpoint that was read
    step            the optimizer step of its weights
    draft_dtype     the type that the draft computes in, one of `eval.draft_dtype`
    trained_target  whether the run trained the target: then the target has the checkpoint's weights too
    """

    path: Path
    step: int
    draft_dtype: str
    config: RunConfig
    resolved: ResolvedRun
    backbone: Backbone
    target: Target
    trained_target: bool
    algorithm: Algorithm
    draft: Draft


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
    resolved = resolve(config, registry)
    for sentence in essential_differences(Lock.model_validate(checkpoint.lock), resolved.lock):
        log.warning("%s: %s", place, sentence)
    backbone: Backbone = resolved.backbone.load()
    algorithm: Algorithm = resolved.algorithm.load()
    target = backbone.load(config.target, choose_device(getattr(resolved.engine.options, "device", "auto")))
    with torch.random.fork_rng(devices=[]):
        draft = algorithm.build_draft(checkpoint.draft_config, target, vocab_of(checkpoint.vocab))
    load_weights(draft, checkpoint.draft, str(place))
    if checkpoint.target:
        load_target_weights(backbone.module(target), checkpoint.target, str(place))
    draft_dtype = draft_dtype or config.eval.draft_dtype or config.train.dtype
    cast_parameters(draft, torch.float32 if draft_dtype == "int8" else getattr(torch, draft_dtype))
    draft.requires_grad_(False).to(target.device).eval()
    if draft_dtype == "int8":
        quantize_linear(draft)
    return OpenedRun(
        path=place,
        step=checkpoint.step,
        draft_dtype=draft_dtype,
        config=config,
        resolved=resolved,
        backbone=backbone,
        target=target,
        trained_target=bool(checkpoint.target),
        algorithm=algorithm,
        draft=draft,
    )
