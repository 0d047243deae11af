"""The smallest algorithm that trains: two linear heads over the target's last hidden state."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specdec_core.algorithm.base import ExportedDraft, Metric, StepOutput, TrainedAlgorithm, TrainingFreeAlgorithm
from specdec_core.algorithm.draft import Draft
from specdec_core.algorithm.proposal import Drafter, Proposal, Sampling, Verified
from specdec_core.capture.features import CapturePlan, Features
from specdec_core.config.run import DraftSection
from specdec_core.data.batch import PADDING_DOCUMENT, Batch
from specdec_core.data.vocab import VocabMap
from specdec_core.errors import UserError
from specdec_core.target.base import Target, TargetFacts

HEADS = 2


class ToyDraft(Draft):
    ids: Tensor

    def __init__(self, config: Mapping[str, Any], target: Target, vocab: VocabMap | None, dropout: float) -> None:
        super().__init__(target)
        hidden, size = config["hidden_size"], config["draft_vocab_size"]
        self.mix = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleList([nn.Linear(hidden, size) for _ in range(HEADS)])
        self.register_buffer("ids", torch.arange(size) if vocab is None else vocab.ids.clone())

    def backbone(self, embeds: Tensor, hidden: Tensor, attention: Any, positions: Tensor, cache: Any = None) -> Tensor:
        return self.dropout(torch.tanh(self.mix(hidden.to(self.mix.weight.dtype))))

    def labels(self, batch: Batch, head: int) -> Tensor:
        """[B, S] draft ids of the tokens 2 + head slots ahead, -100 where there is nothing to learn."""
        ahead = 2 + head
        labels = torch.full_like(batch.ids, -100)
        if ahead >= batch.ids.shape[1]:
            return labels
        tokens = batch.ids[:, ahead:].contiguous()
        index = torch.searchsorted(self.ids, tokens).clamp(max=self.ids.numel() - 1)
        documents = batch.document_ids
        learned = batch.loss_mask[:, ahead:] & (documents[:, ahead:] == documents[:, :-ahead])
        learned &= (documents[:, ahead:] != PADDING_DOCUMENT) & (self.ids[index] == tokens)
        labels[:, :-ahead] = torch.where(learned, index, -100)
        return labels


class Toy(TrainedAlgorithm):
    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.calls = 0

    def capture_plan(self, facts: TargetFacts) -> CapturePlan:
        return CapturePlan(last_hidden=True)

    def draft_config(self, facts: TargetFacts, draft: DraftSection) -> dict[str, Any]:
        return {"hidden_size": facts.hidden_size, "draft_vocab_size": draft.vocab_size or facts.vocab_size}

    def build_draft(self, config: Mapping[str, Any], target: Target, vocab: VocabMap | None) -> ToyDraft:
        return ToyDraft(config, target, vocab, self.options.dropout)

    @torch.no_grad()
    def init_draft(self, draft: Draft, target: Target) -> None:
        assert isinstance(draft, ToyDraft)
        for head in draft.heads:
            head.weight.copy_(target.head_rows(draft.ids))

    def denominator(self, draft: Draft, batch: Batch, features: Features) -> Tensor:
        assert isinstance(draft, ToyDraft)
        return torch.stack([(draft.labels(batch, head) != -100).sum().float() for head in range(HEADS)])

    def training_step(
        self, draft: Draft, batch: Batch, features: Features, target: Target, denominator: Tensor
    ) -> StepOutput:
        assert isinstance(draft, ToyDraft)
        assert features.last_hidden is not None
        time.sleep(self.options.seconds)
        self.calls += 1
        hidden = draft.backbone(features.last_hidden, features.last_hidden, None, batch.positions)
        loss, metrics, right = hidden.new_zeros(()), {}, []
        for number, head in enumerate(draft.heads):
            labels, logits = draft.labels(batch, number), head(hidden).float()
            loss = loss + F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / denominator[number]
            right.append((logits.argmax(-1) == labels).sum())
            metrics[f"accuracy/{number + 1}"] = Metric(right[-1], (labels != -100).sum())
        metrics["acceptance_length"] = Metric(right[0] + right[1], (draft.labels(batch, 0) != -100).sum())
        if self.calls == self.options.poison:
            loss = loss * float("nan")
        return StepOutput(loss, metrics)

    def drafter(self, draft: Draft, target: Target) -> Drafter:
        return Echo(2)

    def export(self, draft: Draft, facts: TargetFacts) -> ExportedDraft:
        assert isinstance(draft, ToyDraft)
        tensors = {f"toy.{name}": tensor for name, tensor in draft.named_parameters()}
        vocab = VocabMap(draft.ids.cpu(), facts.vocab_size)
        config = {"architectures": ["ToyDraft"], "draft_vocab_size": draft.ids.numel()}
        return ExportedDraft(config, tensors | {"d2t": vocab.d2t})

    def load_exported(self, draft: Draft, tensors: Mapping[str, Tensor]) -> None:
        parameters = {f"toy.{name}": parameter for name, parameter in draft.named_parameters()}
        if missing := parameters.keys() - tensors.keys():
            raise UserError(f"draft tensor {min(missing)} is missing")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[name])


class Echo(Drafter):
    """Proposes the last token over again, at most `most` times."""

    def __init__(self, most: int) -> None:
        self.most = most

    def begin(self, verified: Verified) -> None:
        self.last = verified.ids[-1:]

    def propose(self, num_tokens: int, sampling: Sampling) -> Proposal:
        return Proposal(self.last.repeat(min(num_tokens, self.most)))

    def accept(self, verified: Verified) -> None:
        self.begin(verified)


class Untrained(TrainingFreeAlgorithm):
    title = "echo"

    def drafter(self, target: Target) -> Drafter:
        return Echo(self.options.most)


class Stray:
    """An object that is no algorithm."""

    def __init__(self, options: Any) -> None:
        self.options = options
