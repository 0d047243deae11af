"""A target made of two random matrices, and random packed batches: all that a step reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from specdec_core.capture.features import Features
from specdec_core.config.run import DraftSection
from specdec_core.data.batch import Batch
from specdec_core.data.vocab import VocabMap
from specdec_core.target.base import Target, TargetFacts, Teacher
from specdec_eagle3.algorithm import Eagle3
from specdec_eagle3.config import Eagle3Config
from specdec_eagle3.model import Eagle3Draft

HIDDEN, VOCAB = 32, 61


def facts(num_layers: int = 12) -> TargetFacts:
    return TargetFacts(
        name_or_path="random",
        model_type="random",
        hidden_size=HIDDEN,
        num_layers=num_layers,
        vocab_size=VOCAB,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        hidden_act="silu",
        rms_norm_eps=1e-5,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        attention_bias=False,
        tie_word_embeddings=True,
        dtype="float32",
        bos_token_id=1,
        stop_token_ids=(2,),
    )


def image_facts(**rope: Any) -> TargetFacts:
    """Of a target that reads images."""
    several = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], **rope}
    return replace(facts(), rope_parameters=several, merged_embeds=True)


class MatrixTarget(Target):
    """Embedding and head only. What is not defined here, a step must not ask for."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.facts = facts()
        self.device = "cpu"
        self.table = torch.randn(VOCAB, HIDDEN, generator=generator)
        self.head = torch.randn(VOCAB, HIDDEN, generator=generator) * 0.5
        self.layers = {
            index: {
                "self_attn.q_proj.weight": torch.randn(32, HIDDEN, generator=generator),
                "self_attn.k_proj.weight": torch.randn(16, HIDDEN, generator=generator),
                "self_attn.v_proj.weight": torch.randn(16, HIDDEN, generator=generator),
                "self_attn.o_proj.weight": torch.randn(HIDDEN, 32, generator=generator),
                "mlp.gate_proj.weight": torch.randn(48, HIDDEN, generator=generator),
                "mlp.up_proj.weight": torch.randn(48, HIDDEN, generator=generator),
                "mlp.down_proj.weight": torch.randn(HIDDEN, 48, generator=generator),
                "input_layernorm.weight": torch.rand(HIDDEN, generator=generator),
                "post_attention_layernorm.weight": torch.rand(HIDDEN, generator=generator),
            }
            for index in (11,)
        }
        self.layers[12] = {"weight": torch.rand(HIDDEN, generator=generator)}

    def embed(self, ids: Tensor) -> Tensor:
        return self.table[ids]

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.head.t()

    def teacher(self, hidden: Tensor, rows: Tensor | None = None) -> Teacher:
        logits = self.logits(hidden)
        return Teacher(logits if rows is None else logits[:, rows], logits.logsumexp(-1), logits.argmax(-1))

    def embed_rows(self, ids: Tensor | None = None) -> Tensor:
        return self.table.clone() if ids is None else self.table[ids]

    def head_rows(self, ids: Tensor | None = None) -> Tensor:
        return self.head.clone() if ids is None else self.head[ids]

    def layer_state(self, index: int) -> dict[str, Tensor]:
        return self.layers[index]

    def capture(self, *_: object) -> Features:
        raise AssertionError("a step does not capture")

    def decode(self, *_: object) -> object:  # type: ignore[override]
        raise AssertionError("a step does not decode")

    def generate(self, *_: object) -> list[list[int]]:
        raise AssertionError("a step does not generate")


def random_batch(seed: int, rows: int, length: int) -> tuple[Batch, Features]:
    """Packed rows of documents of random lengths, padding at the end, a random loss mask in runs."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    documents = torch.full((rows, length), -1)
    positions = torch.zeros(rows, length, dtype=torch.int64)
    mask = torch.zeros(rows, length, dtype=torch.bool)
    for row in range(rows):
        end = draw(0, length)
        slot = document = 0
        while slot < end:
            size = min(draw(1, 14), end - slot)
            documents[row, slot : slot + size] = document
            positions[row, slot : slot + size] = torch.arange(size)
            slot, document = slot + size, document + 1
        slot = 0
        while slot < end:
            run = draw(1, 8)
            mask[row, slot : slot + run] = draw(0, 2) > 0
            slot += run
        mask[row, end:] = False
    batch = Batch(torch.randint(0, VOCAB, (rows, length), generator=generator), positions, mask, documents)
    states = {layer: torch.randn(rows, length, HIDDEN, generator=generator) for layer in (2, 6, 9)}
    last = torch.randn(rows, length, HIDDEN, generator=generator)
    return batch, Features(hidden=states, last_hidden=last, argmax=MatrixTarget().logits(last).argmax(-1))


def with_images(data: tuple[Batch, Features], seed: int = 0) -> tuple[Batch, Features]:
    """The same with embeddings of their own and positions on three axes, none of which follows from another."""
    (batch, features), generator = data, torch.Generator().manual_seed(seed)
    steps = torch.randint(0, 4, (3, *batch.positions.shape), generator=generator)
    embeds = torch.randn(*batch.ids.shape, HIDDEN, generator=generator)
    return replace(batch, positions=batch.positions + steps), replace(features, embeds=embeds)


def make(
    options: Eagle3Config, vocab_size: int | None, seed: int = 0, images: bool = False
) -> tuple[Eagle3, Eagle3Draft, MatrixTarget]:
    """An algorithm, its draft (random) and the target, which has three axes of positions if it reads images."""
    algorithm, target = Eagle3(options), MatrixTarget()
    if images:
        target.facts = image_facts()
    vocab = None
    if vocab_size is not None:
        counts = torch.randint(0, 9, (VOCAB,), generator=torch.Generator().manual_seed(seed))
        vocab = VocabMap.from_counts(counts, vocab_size, always=(2,))
    torch.manual_seed(seed)
    config = algorithm.draft_config(target.facts, DraftSection(vocab_size=vocab_size))
    return algorithm, algorithm.build_draft(config, target, vocab), target
