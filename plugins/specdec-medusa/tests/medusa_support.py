"""A target made of a head alone, and random packed batches: all that a step reads."""

from __future__ import annotations

import torch
from torch import Tensor

from specdec_core.capture.features import Features
from specdec_core.config.run import DraftSection
from specdec_core.data.batch import Batch
from specdec_core.data.vocab import VocabMap
from specdec_core.target.base import Target, TargetFacts, Teacher
from specdec_medusa.algorithm import Medusa
from specdec_medusa.config import MedusaConfig
from specdec_medusa.model import MedusaDraft

HIDDEN, VOCAB = 24, 53


def facts() -> TargetFacts:
    return TargetFacts(
        name_or_path="random",
        model_type="random",
        hidden_size=HIDDEN,
        num_layers=3,
        vocab_size=VOCAB,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        hidden_act="silu",
        rms_norm_eps=1e-5,
        max_position_embeddings=512,
        rope_parameters={},
        attention_bias=False,
        tie_word_embeddings=False,
        dtype="float32",
        bos_token_id=1,
        stop_token_ids=(2,),
    )


class HeadTarget(Target):
    """What is not defined here, a step must not ask for."""

    def __init__(self) -> None:
        self.facts = facts()
        self.device = "cpu"
        self.head = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(0)) * 0.5

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.head.t()

    def teacher(self, hidden: Tensor, rows: Tensor | None = None) -> Teacher:
        logits = self.logits(hidden)
        return Teacher(logits if rows is None else logits[:, rows], logits.logsumexp(-1), logits.argmax(-1))

    def head_rows(self, ids: Tensor | None = None) -> Tensor:
        return self.head.clone() if ids is None else self.head[ids]

    def embed(self, *_: object) -> Tensor:
        raise AssertionError("the heads read no embedding")

    embed_rows = embed

    def layer_state(self, *_: object) -> dict[str, Tensor]:
        raise AssertionError("the heads start from the target's head alone")

    def capture(self, *_: object) -> Features:
        raise AssertionError("a step does not capture")

    def decode(self, *_: object) -> object:  # type: ignore[override]
        raise AssertionError("a step does not decode")

    def generate(self, *_: object) -> list[list[int]]:
        raise AssertionError("a step does not generate")


def packed(rows: list[list[str]], length: int, seed: int = 1) -> Batch:
    """Documents written as a letter per token: x is the assistant's, anything else is not."""
    ids = torch.randint(0, VOCAB, (len(rows), length), generator=torch.Generator().manual_seed(seed))
    positions, documents = torch.zeros_like(ids), torch.full_like(ids, -1)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for r, row in enumerate(rows):
        slot = 0
        for number, document in enumerate(row):
            run = slice(slot, slot + len(document))
            positions[r, run], documents[r, run] = torch.arange(len(document)), number
            mask[r, run] = torch.tensor([letter == "x" for letter in document])
            slot += len(document)
    return Batch(ids, positions, mask, documents)


def features_of(batch: Batch, seed: int = 2) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features(last_hidden=torch.randn(*batch.ids.shape, HIDDEN, generator=generator))


def vocab_map(size: int | None) -> VocabMap | None:
    if size is None:
        return None
    return VocabMap.from_counts(torch.arange(VOCAB) * 7 % 11, size, always=(2,))


def make(options: MedusaConfig, vocab_size: int | None, seed: int = 0) -> tuple[Medusa, MedusaDraft, HeadTarget]:
    """An algorithm, its draft with all weights random, and the target."""
    algorithm, target = Medusa(options), HeadTarget()
    torch.manual_seed(seed)
    config = algorithm.draft_config(target.facts, DraftSection(vocab_size=vocab_size))
    draft = algorithm.build_draft(config, target, vocab_map(vocab_size))
    with torch.no_grad():
        for parameter in draft.blocks.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return algorithm, draft, target


def logits_by_hand(draft: MedusaDraft, state: Tensor) -> Tensor:
    """[K, D] float64 from one state [H]: x + SiLU(W x + b), again and again, then the linear map."""
    weights = {name: parameter.detach().double() for name, parameter in draft.named_parameters()}
    found = []
    for head in range(draft.config["num_heads"]):
        x = state.double()
        for layer in range(draft.config["num_hidden_layers"]):
            name = f"blocks.{head}.layers.{layer}"
            y = weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]
            x = x + y / (1 + (-y).exp())
        found.append(weights[f"lm_heads.{head}.weight"] @ x)
    return torch.stack(found)
