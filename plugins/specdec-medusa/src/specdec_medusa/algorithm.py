"""Medusa as the core sees it."""

from __future__ import annotations

from collections.abc import Mapping
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
from specdec_medusa import draft_config, export
from specdec_medusa.config import MedusaConfig
from specdec_medusa.drafter import MedusaDrafter
from specdec_medusa.fast import fast_terms
from specdec_medusa.joint import target_loss, target_slots
from specdec_medusa.model import MedusaDraft
from specdec_medusa.plain import plain_terms
from specdec_medusa.supervision import learned_slots, supervised_slots


class Medusa(TrainedAlgorithm):
    """arXiv 2401.10774: heads over the last hidden state of a target that is frozen (Medusa-1) or learns (Medusa-2)."""

    options: MedusaConfig

    def capture_plan(self, facts: TargetFacts) -> CapturePlan:
        """The last hidden state: the heads' input, and what the teacher is made from."""
        return CapturePlan(last_hidden=True)

    def draft_config(self, facts: TargetFacts, draft: DraftSection) -> dict[str, Any]:
        """Derived from the target, or the JSON that `draft.config` names."""
        if draft.config is not None:
            return draft_config.read(draft.config, self.options, facts, draft)
        return draft_config.derive(self.options, facts, draft)

    def build_draft(self, config: Mapping[str, Any], target: Target, vocab: VocabMap | None) -> MedusaDraft:
        """A draft with random maps and silent residual layers. Raises UserError if `vocab` is not of the right size."""
        return MedusaDraft(config, target, vocab)

    @torch.no_grad()
    def init_draft(self, draft: Draft, target: Target) -> None:
        """Every head's map is the target's head."""
        assert isinstance(draft, MedusaDraft)
        rows = target.head_rows(draft.draft_ids)
        for weight in draft.maps:
            weight.copy_(rows)

    def parameter_groups(self, draft: Draft, weight_decay: float) -> list[dict[str, Any]]:
        """Matrices decay, vectors do not; at `algorithm.lr`, if it is set."""
        own = {} if self.options.lr is None else {"lr": self.options.lr}
        return [{**group, **own} for group in super().parameter_groups(draft, weight_decay)]

    def target_group(self) -> dict[str, Any] | None:
        """Medusa-2: the target begins to learn when the heads have begun to guess."""
        if not self.options.train_target:
            return None
        return {"lr": self.options.target_lr, "starts_at": self.options.heads_first}

    def denominator(self, draft: Draft, batch: Batch, features: Features) -> Tensor:
        """[K] slots that each head learns from; [K + 1] with those of a target that learns."""
        assert isinstance(draft, MedusaDraft)
        heads = self._slots(draft, batch)[1].sum((1, 2)).float()
        if not self.options.train_target:
            return heads
        return torch.cat([heads, target_slots(batch).sum().float().unsqueeze(0)])

    def training_step(
        self, draft: Draft, batch: Batch, features: Features, target: Target, denominator: Tensor
    ) -> StepOutput:
        """Sum over heads of head weight * cross-entropy / denominator; with a target that learns, heads_weight times
        this beside the target's own."""
        assert isinstance(draft, MedusaDraft)
        denominator = denominator.clamp(min=1e-9)
        supervised, learned = self._slots(draft, batch)
        scale = torch.tensor(self.options.head_weights, device=denominator.device) / denominator[: self.options.heads]
        weights = learned * scale.view(-1, 1, 1)
        if self.options.implementation == "plain":
            loss, terms = plain_terms(draft, batch, features, target, weights, self.options)
        else:
            loss, terms = fast_terms(draft, batch, features, target, weights, supervised, self.options)
        metrics = terms.metrics(supervised, learned, batch)
        if self.options.train_target:
            own, its_metrics = target_loss(batch, features, target, denominator[-1], self.options)
            loss, metrics = own + self.options.heads_weight * loss, {**metrics, **its_metrics}
        return StepOutput(loss, metrics)

    def _slots(self, draft: MedusaDraft, batch: Batch) -> tuple[Tensor, Tensor]:
        """[K, B, S] bool each: the slots that are supervised, and those of them that are learned."""
        supervised = supervised_slots(batch, self.options)
        return supervised, learned_slots(supervised, batch, draft, self.options)

    def drafter(self, draft: Draft, target: Target) -> Drafter:
        """Chain or tree drafting, as `algorithm.tree` says."""
        assert isinstance(draft, MedusaDraft)
        pack_linear(draft, rows=1)
        return MedusaDrafter(draft, self.options)

    def export(self, draft: Draft, facts: TargetFacts) -> ExportedDraft:
        """The names that engines read: blocks and lm_heads; d2t and t2d for a part of the vocabulary."""
        assert isinstance(draft, MedusaDraft)
        return export.to_exported(draft)

    def load_exported(self, draft: Draft, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `export`."""
        assert isinstance(draft, MedusaDraft)
        export.from_exported(draft, tensors)
