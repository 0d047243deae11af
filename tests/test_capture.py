"""Captured states against the plain model: any packing, padding and batch, on the layers that are asked for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from target_checks import LONG, Load, Plain, assert_equal, random_ids, reference
from tiny_models import FAMILIES, VOCAB, WINDOW

from specdec_core.capture.features import CapturePlan
from specdec_core.errors import UserError
from specdec_core.testing.batches import batch_of
from specdec_core.testing.family import everything


class TestCapture:
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_packed_and_padded_rows_equal_the_plain_model_document_by_document(
        self, load: Load, plain: Plain, family: str, attention: str
    ) -> None:
        rows = [
            [random_ids(LONG, 1), random_ids(3, 2), random_ids(WINDOW + 1, 3)],
            [random_ids(1, 4), random_ids(LONG + 1, 5)],
            [random_ids(2, 6)],
        ]
        target = load(family, attention)
        captured = target.capture(batch_of(rows), everything(target))
        for index, row in enumerate(rows):
            start = 0
            for document in row:
                expected, _ = reference(plain(family), document)
                assert_equal(captured, expected, slice(start, start + len(document)), index)
                start += len(document)

    @settings(deadline=None, max_examples=25)
    @given(
        lengths=st.lists(st.lists(st.integers(1, 2 * WINDOW), min_size=1, max_size=4), min_size=1, max_size=3),
        family=st.sampled_from(["llama", "mistral"]),
        attention=st.sampled_from(["sdpa", "eager"]),
    )
    def test_any_packing_equals_the_documents_alone(
        self, load: Load, lengths: list[list[int]], family: str, attention: str
    ) -> None:
        rows = [[random_ids(length, 10 * i + j) for j, length in enumerate(row)] for i, row in enumerate(lengths)]
        target = load(family, attention)
        plan = everything(target)
        captured = target.capture(batch_of(rows), plan)
        for index, row in enumerate(rows):
            start = 0
            for document in row:
                alone = target.capture(batch_of([[document]]), plan)
                assert_equal(captured, alone, slice(start, start + len(document)), index)
                start += len(document)

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    @pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
    def test_the_packing_test_would_see_documents_run_together(self, load: Load, family: str, attention: str) -> None:
        first, second = random_ids(5, 1), random_ids(5, 2)
        target = load(family, attention)
        plan = CapturePlan(last_hidden=True)
        together = target.capture(batch_of([[first + second]]), plan).last_hidden
        apart = target.capture(batch_of([[first, second]]), plan).last_hidden
        assert together is not None
        assert apart is not None
        torch.testing.assert_close(together[:, :5], apart[:, :5], rtol=1e-4, atol=1e-4)
        assert (together[:, 5:] - apart[:, 5:]).abs().max() > 0.05

    @pytest.mark.parametrize(
        ("plan", "layers_run"),
        [
            (CapturePlan(layers=(0,)), 0),
            (CapturePlan(embeds=True), 0),
            (CapturePlan(layers=(1, 3)), 3),
            (CapturePlan(layers=(8,)), 8),
            (CapturePlan(layers=(1,), last_hidden=True), 8),
            (CapturePlan(layers=(1,), argmax=True), 8),
            (CapturePlan(), 0),
        ],
    )
    def test_layers_that_nobody_reads_are_not_run(self, load: Load, plan: CapturePlan, layers_run: int) -> None:
        target = load("llama")
        ran = []
        handles = [layer.register_forward_hook(lambda *_: ran.append(1)) for layer in target.layers()]
        handles.append(target.head().register_forward_hook(lambda *_: pytest.fail("the head was run")))
        try:
            features = target.capture(batch_of([[random_ids(4)]]), plan)
        finally:
            for handle in handles:
                handle.remove()
        assert len(ran) == layers_run
        assert set(features.hidden) == set(plan.layers)
        assert (features.last_hidden is None) == (not plan.last_hidden)
        assert (features.embeds is None) == (not plan.embeds)
        assert (features.argmax is None) == (not plan.argmax)

    def test_hooks_are_gone_afterwards_even_after_an_error(self, load: Load) -> None:
        target = load("llama")
        hooks = lambda: sum(len(module._forward_pre_hooks) for module in target.model.modules())  # noqa: E731
        batch = batch_of([[random_ids(4)]])
        target.capture(batch, everything(target))
        target.capture(batch, CapturePlan(layers=(2,)))
        assert hooks() == 0
        batch.ids[0, 0] = VOCAB
        with pytest.raises(IndexError):
            target.capture(batch, everything(target))
        assert hooks() == 0

    def test_what_is_captured_can_enter_autograd(self, load: Load) -> None:
        target = load("llama")
        features = target.capture(batch_of([[random_ids(4)]]), everything(target))
        weight = torch.ones(64, requires_grad=True)
        loss = sum((tensor * weight).sum() for tensor in [*features.hidden.values(), features.last_hidden])
        loss.backward()  # type: ignore[union-attr]
        assert weight.grad is not None
        assert not any(tensor.requires_grad for tensor in features.tensors())

    def test_a_layer_that_does_not_exist_is_refused(self, load: Load) -> None:
        with pytest.raises(UserError, match="layer 9 cannot be captured: the target has layer ids 0 to 8"):
            load("llama").capture(batch_of([[random_ids(4)]]), CapturePlan(layers=(2, 9)))
