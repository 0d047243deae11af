"""The smallest algorithm that trains its target too: one linear head, and the target's own loss."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from specdec_core.algorithm.base import ExportedDraft, Metric, StepOutput, TrainedAlgorithm
from specdec_core.algorithm.draft import Draft
from specdec_core.algorithm.proposal import Drafter, Proposal, Sampling, Verified
from specdec_core.capture.features import CapturePlan, Features
from specdec_core.config.run import DraftSection
from specdec_core.data.batch import Batch
from specdec_core.data.vocab import VocabMap
from specdec_core.nn.labels import label_loss
from specdec_core.target.base import Target, TargetFacts


class JointDraft(Draft):
    def __init__(self, config: Mapping[str, Any], target: Target) -> None:
        super().__init__(target)
        self.head = nn.Linear(config["hidden_size"], config["vocab_size"])

    def backbone(self, embeds: Tensor, hidden: Tensor, attention: Any, positions: Tensor, cache: Any = None) -> Tensor:
        return hidden.to(self.head.weight.dtype)


class Joint(TrainedAlgorithm):
    def target_group(self) -> dict[str, Any]:
        return {"lr": self.options.target_lr, "starts_at": self.options.starts_at}

    def capture_plan(self, facts: TargetFacts) -> CapturePlan:
        return CapturePlan(last_hidden=True)

    def draft_config(self, facts: TargetFacts, draft: DraftSection) -> dict[str, Any]:
        return {"hidden_size": facts.hidden_size, "vocab_size": facts.vocab_size}

    def build_draft(self, config: Mapping[str, Any], target: Target, vocab: VocabMap | None) -> JointDraft:
        return JointDraft(config, target)

    @torch.no_grad()
    def fit_draft(self, draft: Draft, target: Target, sample: Iterable[tuple[Batch, Features]]) -> None:
        """Into the head's bias: how often each token is supervised."""
        assert isinstance(draft, JointDraft)
        counts = torch.ones_like(draft.head.bias)
        for batch, features in sample:
            assert features.last_hidden is not None
            assert not features.last_hidden.requires_grad
            counts += torch.bincount(batch.ids[batch.loss_mask], minlength=counts.numel())
        draft.head.bias.copy_(counts.log())

    def denominator(self, draft: Draft, batch: Batch, features: Features) -> Tensor:
        assert not features.tensors()
        return torch.stack([learned(batch, ahead).sum().float() for ahead in (1, 2)])

    def training_step(
        self, draft: Draft, batch: Batch, features: Features, target: Target, denominator: Tensor
    ) -> StepOutput:
        assert isinstance(draft, JointDraft)
        assert features.last_hidden is not None
        time.sleep(self.options.seconds)
        states = draft.backbone(features.last_hidden, features.last_hidden, None, batch.positions)

        def rows(hidden: Tensor, ahead: int, weight: float) -> tuple[Tensor, Tensor, Tensor]:
            mask = learned(batch, ahead)
            labels = batch.ids[:, ahead:][mask]
            weights = torch.full_like(labels, weight, dtype=torch.float32) / denominator[ahead - 1]
            return hidden[:, :-ahead][mask], labels, weights

        own, stats = target.label_loss(*rows(features.last_hidden, 1, 1.0))
        hidden, labels, weights = rows(states, 2, self.options.weight)
        ahead, guesses = label_loss(hidden, draft.head.weight, labels, weights, bias=draft.head.bias)
        return StepOutput(
            own + ahead,
            {
                "target/loss": Metric(stats.loss.sum(), denominator.new_tensor(stats.loss.numel())),
                "accuracy/1": Metric(guesses.correct.sum(), denominator.new_tensor(labels.numel())),
            },
        )

    def drafter(self, draft: Draft, target: Target) -> Drafter:
        assert isinstance(draft, JointDraft)
        return JointDrafter(draft)

    def export(self, draft: Draft, facts: TargetFacts) -> ExportedDraft:
        return ExportedDraft({"architectures": ["JointDraft"]}, dict(draft.named_parameters()))


def learned(batch: Batch, ahead: int) -> Tensor:
    """[B, S - ahead] bool: whether slot t learns token t + ahead."""
    documents = batch.document_ids
    return batch.loss_mask[:, ahead:] & (documents[:, ahead:] == documents[:, :-ahead])


class JointDrafter(Drafter):
    def __init__(self, draft: JointDraft) -> None:
        self.draft = draft

    def begin(self, verified: Verified) -> None:
        self.accept(verified)

    def accept(self, verified: Verified) -> None:
        assert verified.features.last_hidden is not None
        self.hidden = verified.features.last_hidden[0, -1:]

    def propose(self, num_tokens: int, sampling: Sampling) -> Proposal:
        return Proposal(self.draft.head(self.hidden.to(self.draft.head.weight.dtype)).argmax(-1))
