"""Hydra as the core sees it: what it reads of the target, the training step, export."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from specdec_core.algorithm.base import ExportedDraft, Metric, StepOutput, TrainedAlgorithm
from specdec_core.algorithm.draft import Draft
from specdec_core.algorithm.proposal import Drafter
from specdec_core.capture.features import CapturePlan, Features
from specdec_core.checkpoint.weights import load_weights
from specdec_core.config.run import DraftSection
from specdec_core.data.batch import Batch, ahead
from specdec_core.data.vocab import VocabMap
from specdec_core.errors import UserError
from specdec_core.target.base import Target, TargetFacts
from specdec_hydra.config import HydraConfig
from specdec_hydra.drafter import HydraDrafter
from specdec_hydra.model import HydraDraft


class Hydra(TrainedAlgorithm):
    """Ankner et al. 2024 (arXiv 2402.05109), with the target's top tokens as labels."""

    options: HydraConfig

    def capture_plan(self, facts: TargetFacts) -> CapturePlan:
        """The state that the target's head reads, and the token that it puts first."""
        return CapturePlan(last_hidden=True, argmax=True)

    def draft_config(self, facts: TargetFacts, draft: DraftSection) -> dict[str, Any]:
        """All that is needed to build the draft again."""
        if draft.config is not None or draft.vocab_size not in (None, facts.vocab_size):
            raise UserError("algorithm hydra reads neither draft.config nor draft.vocab_size; leave them out")
        sizes = {"hidden_size": facts.hidden_size, "vocab_size": facts.vocab_size}
        return {"architectures": ["HydraDraft"], **sizes, "num_heads": self.options.heads}

    def build_draft(self, config: Mapping[str, Any], target: Target, vocab: VocabMap | None) -> Draft:
        """On the CPU, in float32; the core moves and casts it."""
        return HydraDraft(config, target)

    def denominator(self, draft: Draft, batch: Batch, features: Features) -> Tensor:
        """[K] the slots that each head learns from."""
        return self.learned_slots(batch).sum((1, 2)).float()

    def training_step(
        self, draft: Draft, batch: Batch, features: Features, target: Target, denominator: Tensor
    ) -> StepOutput:
        """Sum over heads of the mean cross-entropy over the slots that the head learns from."""
        assert isinstance(draft, HydraDraft)
        assert features.last_hidden is not None
        assert features.argmax is not None
        embeds = draft.embed_input_ids(batch.ids)
        loss, metrics, read = torch.zeros((), device=embeds.device), {}, []
        for head, slots in enumerate(self.learned_slots(batch)):
            read.append(ahead(embeds, 1 + head, 0))
            states = draft.backbone(torch.cat([x[slots] for x in read], dim=-1), features.last_hidden[slots])
            labels = ahead(features.argmax, 1 + head, 0)[slots]
            weights = torch.ones_like(labels, dtype=torch.float32) / denominator[head]
            part, stats = target.label_loss(states, labels, weights)
            loss = loss + part
            metrics[f"accuracy/{head + 1}"] = Metric(stats.correct.sum(), slots.sum())
        return StepOutput(loss, metrics)

    def learned_slots(self, batch: Batch) -> Tensor:
        """[K, B, S] bool: head i at slot t reads x[t+1 .. t+1+i] and learns what the target says after them. These and
        x[t+2+i] are the assistant's and of one document, as they are in decoding."""
        slots, masks = ahead(batch.loss_mask, 1, False), []
        for distance in range(2, 2 + self.options.heads):
            slots = slots & ahead(batch.loss_mask, distance, False) & batch.same_document(distance)
            masks.append(slots)
        return torch.stack(masks)

    def drafter(self, draft: Draft, target: Target) -> Drafter:
        """One for each text."""
        assert isinstance(draft, HydraDraft)
        return HydraDrafter(draft)

    def export(self, draft: Draft, facts: TargetFacts) -> ExportedDraft:
        """config.json and tensors, under names that are the draft's own."""
        assert isinstance(draft, HydraDraft)
        return ExportedDraft(draft.config, {name: tensor.detach().cpu() for name, tensor in draft.named_parameters()})

    def load_exported(self, draft: Draft, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `export`: what `draft.init_from` reads."""
        load_weights(draft, tensors, "the exported draft")
