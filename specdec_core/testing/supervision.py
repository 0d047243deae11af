"""What an algorithm promises of masks, padding and documents: which tokens it learns from."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specdec_core.testing.batches import Document, pack, random_ids
from specdec_core.testing.bench import Step, TrainedBench
from specdec_core.testing.compare import assert_close
from specdec_core.testing.promises import promise
from specdec_core.testing.step import OnTheBench, with_and_without_images
from specdec_core.testing.target import states_saying

TURN = 12
"""Tokens of each question and each answer where there are two of both."""
BEFORE, LEARNED, AFTER = 6, 18, 8
END = BEFORE + LEARNED
"""The first token that is not learned any more."""


class SupervisionContract(OnTheBench):
    """Only tokens to be learned count, each document by itself."""

    @promise("masked-tokens")
    def test_what_comes_after_the_last_learned_token_changes_nothing(self) -> None:
        """Tokens after it are exchanged, and so is what the target says from the last learned token on."""
        bench = self.trained()
        draft, document = bench.draft(), _answer(bench)
        changed = document.ids.clone()
        changed[END:] = torch.tensor(random_ids(AFTER, bench.facts.vocab_size, 77))
        generator = torch.Generator().manual_seed(7)

        def other(x: torch.Tensor) -> torch.Tensor:
            noise = torch.randn(x.shape, generator=generator).to(x.dtype) if x.is_floating_point() else x.roll(1, 1)
            return torch.cat([x[:, : END - 1], noise[:, END - 1 :]], dim=1)

        expected = bench.rows(draft, [[document]])
        found = bench.rows(draft, [[Document(changed, document.learned, document.features.map(other))]])
        found.assert_equals(expected)

    @promise("masked-tokens")
    def test_a_document_without_learned_tokens_changes_nothing(self) -> None:
        """Beside another one in its row, and in a row of its own."""
        bench = self.trained()
        draft, document = bench.draft(), bench.random_document(20, 1)
        silent = bench.document(random_ids(9, bench.facts.vocab_size, 8), [False] * 9)
        expected = bench.rows(draft, [[document]])
        for rows in ([[silent, document]], [[document], [silent]]):
            bench.rows(draft, rows).assert_equals(expected)

    @promise("masked-tokens")
    def test_without_learned_tokens_there_is_no_loss(self) -> None:
        """And no gradient, no denominator and nothing counted."""
        bench = self.trained()
        step = bench.rows(bench.draft(), [[bench.document(random_ids(12, 99, 3), [False] * 12)]])
        assert not bool(step.denominator.any()), f"the denominators are {step.denominator.tolist()}, expected zeros"
        _assert_nothing(step)

    @promise("masked-tokens")
    def test_questions_count_for_nothing(self) -> None:
        """Of two questions with their answers. What counts tokens, so that a second answer to be learned makes it grow,
        must grow further when one of the questions is to be learned too, and not have counted it before."""
        bench = self.trained()
        draft = bench.draft()

        def counted(*turns: bool) -> dict[str, float]:
            step = bench.rows(draft, [[_turns(bench, turns, seed)] for seed in range(3)])
            counts = {f"denominator {index}": float(x) for index, x in enumerate(step.denominator)}
            return counts | {f"the count of {name}": float(m.count) for name, m in step.metrics.items() if "/" in name}

        one, both = counted(False, True, False, False), counted(False, True, False, True)
        tokens = [name for name, count in both.items() if count > one[name]]
        assert tokens, "one answer more to be learned makes no denominator grow, and no count of a metric"
        for where, more in (("first", counted(True, True, False, True)), ("second", counted(False, True, True, True))):
            for name in tokens:
                assert more[name] > both[name], (
                    f"{name} is {both[name]:g}, and {more[name]:g} when the {where} question is to be learned too"
                )

    @promise("learned-tokens")
    def test_the_last_learned_token_is_learned(self) -> None:
        """Another token in its place, which the target then expects there, gives another loss."""
        bench = self.trained()
        draft, losses = bench.draft(), []
        for token in bench.sayable[[7, -7]]:
            document = _answer(bench)
            ids = document.ids.clone()
            ids[END - 1] = token
            features, taught = document.features, END - 2
            if features.last_hidden is not None:
                features.last_hidden[0, taught] = states_saying(bench.target, token[None])[0]
            if features.argmax is not None:
                features.argmax[0, taught] = token
            batch = pack([[Document(ids, document.learned, features)]])
            losses.append(bench.step(draft, *batch, torch.ones_like(bench.denominator(draft, *batch))).loss)
        gap = float((losses[0] - losses[1]).abs())
        assert gap > 1e-4, f"whatever the last learned token is, the loss is {float(losses[0]):.6g}"

    @promise("padding")
    def test_padding_changes_nothing(self) -> None:
        """Padding holds any token and any features."""
        bench = self.trained()
        draft, rows = bench.draft(), [[document] for document in bench.documents()[:3]]
        expected = bench.rows(draft, [[row[0]] for row in rows])
        found = bench.step(draft, *pack(rows, padding=7))
        assert_close(found.denominator, expected.denominator, "with more padding, the vector of denominators")
        found.assert_equals(expected)

    @promise("padding")
    def test_a_row_of_padding_is_worth_nothing(self) -> None:
        """A rank may get one."""
        bench = self.trained()
        batch, features = pack([[bench.random_document(12, 1)]])
        batch.document_ids.fill_(-1)
        batch.loss_mask.fill_(False)
        _assert_nothing(bench.step(bench.draft(), batch, features))

    @promise("documents")
    @with_and_without_images
    def test_packed_documents_are_worth_the_same_as_apart(self, images: bool) -> None:
        """In one row, in two, in the other order, and each in a row of its own."""
        bench = self.trained(images=images)
        draft, documents = bench.draft(), bench.documents()
        expected = bench.rows(draft, [[document] for document in documents])
        for rows in ([documents], [documents[::-1]], [documents[:3], documents[3:]]):
            bench.rows(draft, rows).assert_equals(expected)


def _answer(bench: TrainedBench) -> Document:
    """A question, an answer to be learned, and what follows; all of it in the draft vocabulary."""
    generator = torch.Generator().manual_seed(11)
    count = BEFORE + LEARNED + AFTER
    ids = bench.sayable[torch.randint(0, bench.sayable.numel(), (count,), generator=generator)]
    learned = [False] * BEFORE + [True] * LEARNED + [False] * AFTER
    return bench.document(ids.tolist(), learned)


def _turns(bench: TrainedBench, learned: Sequence[bool], seed: int) -> Document:
    """Turns of random tokens, each learned or not, and a question at the end."""
    ids = random_ids(TURN * (len(learned) + 1), bench.facts.vocab_size, seed)
    return bench.document(ids, [turn for turn in (*learned, False) for _ in range(TURN)])


def _assert_nothing(step: Step) -> None:
    assert float(step.loss) == 0, f"the loss is {float(step.loss):.6g}, expected 0"
    for name, gradient in step.gradients.items():
        assert not bool(gradient.any()), f"the gradient of {name} is not zero"
    for name, metric in step.metrics.items():
        assert metric.sum == metric.count == 0, f"metric {name} is {metric.sum} of {metric.count}, expected nothing"
