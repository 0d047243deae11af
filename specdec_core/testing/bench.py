"""An algorithm on the bench: its draft, the tiny target, documents, and one step of it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from specdec_core.algorithm.base import Algorithm, Metric, TrainedAlgorithm, TrainingFreeAlgorithm
from specdec_core.algorithm.draft import Draft
from specdec_core.algorithm.proposal import Drafter, Verified
from specdec_core.capture.features import Features
from specdec_core.config.run import DraftSection, Dtype, TrainSection
from specdec_core.data.batch import Batch
from specdec_core.data.vocab import VocabMap
from specdec_core.engine.base import StepModule
from specdec_core.engine.config import TorchEngineConfig
from specdec_core.engine.torch_engine import TorchEngine
from specdec_core.testing.batches import Document, batch_of, pack, random_ids
from specdec_core.testing.compare import assert_all_close, assert_close
from specdec_core.testing.target import FACTS, IMAGE_FACTS, TinyTarget, weights_of

IMAGE = slice(1, 4)
PLACES = ((1, 2, 1), (1, 4, 5), (1, 2, 7))
"""The image's slots in a text, and their positions on three axes."""
LEARNING_RATE = 1e-2
TARGET = "the target's states"
"""Under this name the gradients of a step hold the one that reaches the target, where it learns."""
LESSONS = 25
"""Steps after which a draft has learned to say one token, and something of a few short texts."""


@dataclass(frozen=True)
class Step:
    """What one training step gave. gradients: of every parameter that has one, and `TARGET`'s if the target learns."""

    loss: Tensor
    gradients: Mapping[str, Tensor]
    metrics: Mapping[str, Metric]
    denominator: Tensor

    @classmethod
    def sum(cls, steps: Sequence[Step]) -> Step:
        """Of micro-batches that were divided by the same denominators, which is their sum."""
        gradients: dict[str, Tensor] = {}
        metrics: dict[str, Metric] = {}
        for step in steps:
            for name, gradient in step.gradients.items():
                gradients[name] = gradients.get(name, 0) + gradient
            for name, metric in step.metrics.items():
                old = metrics.get(name, Metric(torch.zeros(()), torch.zeros(())))
                metrics[name] = Metric(old.sum + metric.sum, old.count + metric.count)
        return cls(torch.stack([step.loss for step in steps]).sum(), gradients, metrics, steps[0].denominator)

    def assert_equals(self, expected: Step) -> None:
        """Loss, gradients and metrics, up to rounding. A gradient that is missing is zero."""
        assert_close(self.denominator, expected.denominator, "the denominators")
        assert_close(self.loss, expected.loss, "the loss")
        zeros = {name: torch.zeros_like(x) for name, x in {**expected.gradients, **self.gradients}.items()}
        assert_all_close({**zeros, **self.gradients}, {**zeros, **expected.gradients}, "the gradient of")
        self.assert_metrics_equal(expected)

    def assert_metrics_equal(self, expected: Step) -> None:
        """Sums and counts, up to rounding."""
        names = self.metrics.keys() ^ expected.metrics.keys()
        assert not names, f"metrics {', '.join(sorted(names))} are not in both"
        for name, metric in expected.metrics.items():
            assert_close(self.metrics[name].count, metric.count, f"the count of metric {name}")
            assert_close(self.metrics[name].sum, metric.sum, f"the sum of metric {name}")


class Lesson(StepModule):
    """A step whose every group learns at `LEARNING_RATE`, whatever rates the options set: a lesson is short."""

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """The algorithm's groups."""
        return [{**group, "lr": LEARNING_RATE} for group in super().parameter_groups(weight_decay)]


class Bench(ABC):
    """An algorithm with its options on a `TinyTarget`.

    images  whether each text shows an image at `IMAGE`: those slots have embeddings of their own, which the features
            hold if they are planned, and positions on three axes. What the target makes of the text is not changed
    """

    def __init__(self, algorithm: Algorithm, dtype: Dtype = "float32", images: bool = False) -> None:
        self.target = TinyTarget(dtype, facts=IMAGE_FACTS if images else FACTS)
        self.images = images
        self.facts = self.target.facts
        self.plan = algorithm.capture_plan(self.facts)

    @abstractmethod
    def drafters(self, lessons: Sequence[Document] = ()) -> Callable[[], Drafter]:
        """What makes drafters, all of one draft. The draft is shaken, or was trained on `lessons`."""

    @property
    def sayable(self) -> Tensor:
        """[D] the target ids that can be proposed."""
        return torch.arange(self.facts.vocab_size)

    @torch.no_grad()
    def features(self, ids: Sequence[int]) -> Features:
        """What the plan names, of one document."""
        features = self.target.capture(batch_of([[list(ids)]]), self.plan)
        if self.images and features.embeds is not None:
            merged = features.embeds[:, IMAGE]
            noise = torch.randn(1, len(PLACES), merged.shape[2], generator=torch.Generator().manual_seed(6))
            features.embeds[:, IMAGE] = 5 * noise[:, : merged.shape[1]].to(merged.dtype)
        return features

    def positions(self, count: int) -> Tensor | None:
        """[3, count] of a text with an image, after which they go on from the highest; None without images."""
        if not self.images:
            return None
        positions = torch.arange(count).repeat(3, 1)
        positions[:, IMAGE] = torch.tensor(PLACES).T[:, : positions[:, IMAGE].shape[1]]
        positions[:, IMAGE.stop :] += max(map(max, PLACES)) + 1 - IMAGE.stop
        return positions

    def document(self, ids: Sequence[int], learned: Iterable[bool] | None = None) -> Document:
        """With the target's own features; None learns every token."""
        mask = torch.ones(len(ids), dtype=torch.bool) if learned is None else torch.tensor(list(learned))
        return Document(torch.tensor(ids), mask, self.features(ids), self.positions(len(ids)))

    def verified(self, text: Sequence[int], start: int = 0) -> Verified:
        """The slots from `start` on that have been read of a text whose last token was just emitted."""
        read = slice(start, len(text) - 1)
        positions = self.positions(len(text))
        rotary = None if positions is None else positions[:, read]
        return Verified(torch.tensor(text[start:]), self.features(text).select(read), start, rotary)


class FreeBench(Bench):
    """For an algorithm without training."""

    def __init__(self, algorithm: TrainingFreeAlgorithm, dtype: Dtype = "float32", images: bool = False) -> None:
        super().__init__(algorithm, dtype, images)
        self.algorithm = algorithm

    def drafters(self, lessons: Sequence[Document] = ()) -> Callable[[], Drafter]:
        """There is nobody to be taught."""
        return partial(self.algorithm.drafter, self.target)


class TrainedBench(Bench):
    """For an algorithm that trains. `vocab_size` is that of the draft, None for the target's."""

    def __init__(
        self, algorithm: TrainedAlgorithm, vocab_size: int | None, dtype: Dtype = "float32", images: bool = False
    ) -> None:
        super().__init__(algorithm, dtype, images)
        self.algorithm = algorithm
        self.config = algorithm.draft_config(self.facts, DraftSection(vocab_size=vocab_size))
        size = self.config.get("draft_vocab_size") or self.facts.vocab_size
        self.vocab = None
        if size != self.facts.vocab_size:
            counts = torch.randint(0, 99, (self.facts.vocab_size,), generator=torch.Generator().manual_seed(5))
            self.vocab = VocabMap.from_counts(counts, size, always=self.facts.stop_token_ids)

    @property
    def sayable(self) -> Tensor:
        """[D] the target ids of the draft vocabulary."""
        return super().sayable if self.vocab is None else self.vocab.ids

    def random_draft(self, seed: int = 0) -> Draft:
        """A draft as it is built, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.algorithm.build_draft(self.config, self.target, self.vocab).eval()

    def draft(self, seed: int = 0) -> Draft:
        """A draft in evaluation mode, shaken: every parameter shows in what it computes, whatever it starts as."""
        draft = self.random_draft(seed)
        shake(draft, seed)
        return draft

    def drafter(self, draft: Draft) -> Drafter:
        """A drafter for one sequence."""
        return self.algorithm.drafter(draft, self.target)

    def drafters(self, lessons: Sequence[Document] = ()) -> Callable[[], Drafter]:
        """What makes drafters, all of one draft."""
        if not lessons:
            return partial(self.drafter, self.draft())
        draft = self.random_draft()
        self.train(draft, lessons, LESSONS)
        return partial(self.drafter, draft)

    def engine(self, draft: Draft) -> TorchEngine:
        """The engine `torch`, ready to train a draft, and a target that learns, on the CPU."""
        engine = TorchEngine(TorchEngineConfig(device="cpu"))
        engine.start()
        train = TrainSection(lr=LEARNING_RATE, schedule="constant", warmup_ratio=0.0)
        weights = weights_of(self.target) if self.algorithm.trains_target else None
        engine.prepare(Lesson(self.algorithm, draft, self.target, weights), train, 1)
        return engine

    def window(self, documents: Sequence[Document]) -> list[tuple[Batch, Features]]:
        """One batch, as an engine reads it: without features where they are captured in the step."""
        batch, features = pack([documents])
        return [(batch, Features() if self.algorithm.trains_target else features)]

    def train(self, draft: Draft, documents: Sequence[Document], steps: int) -> list[float]:
        """Train on one batch with the engine `torch`, and leave the draft in evaluation mode. The loss of each step."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            engine, window = self.engine(draft), self.window(documents)
            losses = [float(engine.train_step(window).metrics["loss"].sum) for _ in range(steps)]
        draft.eval()
        return losses

    def documents(self) -> list[Document]:
        """Long and short ones, one of a single token, one of which nothing is learned."""
        lengths = (19, 7, 1, 24, 2, 12)
        found = [self.random_document(length, seed) for seed, length in enumerate(lengths, 40)]
        return [*found, self.document(random_ids(9, self.facts.vocab_size, 8), [False] * 9)]

    def random_document(self, length: int, seed: int) -> Document:
        """Random tokens, of which runs are learned."""
        generator = torch.Generator().manual_seed(seed)
        learned = [bool(x) for x in torch.rand(length // 8 + 1, generator=generator) < 0.7 for _ in range(8)]
        return self.document(random_ids(length, self.facts.vocab_size, seed), learned[:length])

    def denominator(self, draft: Draft, batch: Batch, features: Features) -> Tensor:
        """[K] float32."""
        with torch.no_grad():
            return self.algorithm.denominator(draft, batch, Features() if self.algorithm.trains_target else features)

    def step(self, draft: Draft, batch: Batch, features: Features, denominator: Tensor | None = None) -> Step:
        """A step and its backward. None divides by the batch's own denominators.

        The tiny target is frozen here. For an algorithm that trains its target, all features pass through one linear
        map, the identity. Its gradient is, like that of a target's layer, a sum over slots, however they are packed.
        """
        if denominator is None:
            denominator = self.denominator(draft, batch, features)
        divisor = torch.where(denominator > 0, denominator, torch.ones_like(denominator))
        draft.zero_grad(set_to_none=True)
        layer = torch.eye(self.facts.hidden_size, requires_grad=True)
        if self.algorithm.trains_target:
            features = features.map(lambda x: x @ layer.to(x.dtype) if x.is_floating_point() else x)
        output = self.algorithm.training_step(draft, batch, features, self.target, divisor)
        if output.loss.requires_grad:
            output.loss.backward()  # type: ignore[no-untyped-call]
        gradients = {name: p.grad.clone() for name, p in draft.named_parameters() if p.grad is not None}
        if layer.grad is not None:
            gradients[TARGET] = layer.grad
        draft.zero_grad(set_to_none=True)
        metrics = {name: Metric(m.sum.detach(), m.count.detach()) for name, m in output.metrics.items()}
        return Step(output.loss.detach(), gradients, metrics, denominator)

    def rows(self, draft: Draft, rows: Sequence[Sequence[Document]]) -> Step:
        """A step on packed rows."""
        return self.step(draft, *pack(rows))

    def micro_batches(self, draft: Draft, parts: Sequence[Sequence[Sequence[Document]]]) -> Step:
        """A step on each part, all divided by the sum of their denominators, and summed."""
        packed = [pack(part) for part in parts]
        total = torch.stack([self.denominator(draft, *part) for part in packed]).sum(0)
        return Step.sum([self.step(draft, *part, total) for part in packed])


@contextmanager
def recorded(draft: Draft) -> Iterator[list[Tensor]]:
    """Yield a list that fills with what `draft.compute_logits` reads within the block, call by call."""
    states: list[Tensor] = []
    compute_logits = draft.compute_logits

    def recording(hidden: Tensor) -> Tensor:
        states.append(hidden.detach())
        return compute_logits(hidden)

    draft.compute_logits = recording  # type: ignore[method-assign]
    try:
        yield states
    finally:
        del draft.compute_logits


@torch.no_grad()
def shake(draft: nn.Module, seed: int = 0) -> None:
    """Make each parameter large enough, and different enough, for a mistake with it to be seen."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in draft.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        if parameter.ndim >= 2:
            parameter.add_(noise * 2 / math.sqrt(parameter.shape[-1]))
        else:
            parameter.add_(noise * 0.3)
