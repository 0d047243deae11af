"""EAGLE-3 as the core sees it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from specdec_core.algorithm.base import ExportedDraft, StepOutput, TrainedAlgorithm
from specdec_core.algorithm.draft import Draft
from specdec_core.algorithm.proposal import Drafter
from specdec_core.capture.features import CapturePlan, Features
from specdec_core.config.run import DraftSection
from specdec_core.data.batch import Batch
from specdec_core.data.vocab import VocabMap
from specdec_core.nn.linear import pack_linear
from specdec_core.target.base import Target, TargetFacts
from specdec_eagle3 import draft_config, export, fit, initial
from specdec_eagle3.config import Eagle3Config
from specdec_eagle3.drafter import Eagle3Drafter
from specdec_eagle3.fast import fast_terms
from specdec_eagle3.model import Eagle3Draft
from specdec_eagle3.plain import plain_terms
from specdec_eagle3.supervision import denominators, slot_weights, supervised_slots


class Eagle3(TrainedAlgorithm):
    """arXiv 2503.01840: a one-layer draft over three of the target's states, trained by training-time test."""

    options: Eagle3Config

    def capture_plan(self, facts: TargetFacts) -> CapturePlan:
        """The captured layers and the last hidden state, from which the teacher is made; merged embeddings if told."""
        layers = draft_config.captured_layers(self.options, facts)
        return CapturePlan(
            layers=layers, last_hidden=True, embeds=facts.merged_embeds, argmax=self.options.filter_teacher
        )

    def draft_config(self, facts: TargetFacts, draft: DraftSection) -> dict[str, Any]:
        """Derived from the target, or the JSON that `draft.config` names."""
        if draft.config is not None:
            return draft_config.read(draft.config, self.options, facts, draft)
        return draft_config.derive(self.options, facts, draft)

    def build_draft(self, config: Mapping[str, Any], target: Target, vocab: VocabMap | None) -> Eagle3Draft:
        """A draft with random weights. Raises UserError if `vocab` is not of the config's size."""
        draft = Eagle3Draft(config, target, vocab)
        if self.options.head == "frozen":
            draft.lm_head.weight.requires_grad_(False)
        return draft

    def init_draft(self, draft: Draft, target: Target) -> None:
        """Copy what fits from the target."""
        assert isinstance(draft, Eagle3Draft)
        initial.start_from_target(draft, target, self.options.init_layer)

    def fit_draft(self, draft: Draft, target: Target, sample: Iterable[tuple[Batch, Features]]) -> None:
        """Solve the linear parts by least squares; see `specdec_eagle3.fit`."""
        assert isinstance(draft, Eagle3Draft)
        fit.fit(draft, target, sample, self.options)

    def parameter_groups(self, draft: Draft, weight_decay: float) -> list[dict[str, Any]]:
        """The default's, with fc in a group of its own."""
        assert isinstance(draft, Eagle3Draft)
        groups = super().parameter_groups(draft, weight_decay)
        groups[0]["params"] = [p for p in groups[0]["params"] if p is not draft.fc.weight]
        return [
            *groups,
            {"params": [draft.fc.weight], "weight_decay": weight_decay, "lr_scale": self.options.fc_lr_scale},
        ]

    def denominator(self, draft: Draft, batch: Batch, features: Features) -> Tensor:
        """[K] per step."""
        assert isinstance(draft, Eagle3Draft)
        return denominators(batch, slot_weights(batch, features, self.options, draft.in_vocab), self.options)

    def training_step(
        self, draft: Draft, batch: Batch, features: Features, target: Target, denominator: Tensor
    ) -> StepOutput:
        """Sum over steps of step weight * cross-entropy / denominator."""
        assert isinstance(draft, Eagle3Draft)
        options = self.options
        supervised = supervised_slots(batch, options)
        scale = torch.tensor(options.step_weights, device=denominator.device) / denominator.clamp(min=1e-9)
        weights = slot_weights(batch, features, options, draft.in_vocab) * scale.view(-1, 1, 1)
        if options.implementation == "plain":
            loss, terms = plain_terms(draft, batch, features, target, weights, options)
        else:
            loss, terms = fast_terms(draft, batch, features, target, weights, supervised, options)
        if options.objective == "kl":
            loss = loss - (weights * terms.entropy.detach()).sum()
        return StepOutput(loss, terms.metrics(supervised, batch))

    def drafter(self, draft: Draft, target: Target) -> Drafter:
        """Chain drafting."""
        assert isinstance(draft, Eagle3Draft)
        pack_linear(draft, rows=1)
        return Eagle3Drafter(draft, self.options)

    def export(self, draft: Draft, facts: TargetFacts) -> ExportedDraft:
        """The names that vLLM and SGLang read: fc, midlayer, norm, lm_head, d2t, t2d."""
        assert isinstance(draft, Eagle3Draft)
        return export.to_exported(draft)

    def load_exported(self, draft: Draft, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `export`."""
        assert isinstance(draft, Eagle3Draft)
        export.from_exported(draft, tensors)
