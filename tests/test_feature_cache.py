"""Features through a cache: the same as live, and the target is run once for each row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from target_checks import assert_equal, random_ids

from specdec_core.capture.config import MemoryCacheConfig
from specdec_core.capture.features import CapturePlan, Features
from specdec_core.capture.memory import MemoryCache
from specdec_core.capture.source import FeatureSource, check_fingerprint, fingerprint_of
from specdec_core.data.batch import PADDING_DOCUMENT, Batch
from specdec_core.errors import UserError
from specdec_core.target.base import Target
from specdec_core.testing.batches import batch_of
from specdec_core.testing.family import everything

ROWS = [[random_ids(4, 1), random_ids(5, 2)], [random_ids(3, 3)], [random_ids(9, 4)]]


def keyed(*rows: int) -> Batch:
    return replace(batch_of([ROWS[row] for row in rows]), row_keys=tuple(f"row{row}" for row in rows))


@pytest.fixture
def captures(tiny_target: Target, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The row keys of every batch that is run through the target."""
    seen: list[tuple[str, ...]] = []
    capture = tiny_target.capture

    def counted(batch: Batch, plan: CapturePlan) -> Features:
        seen.append(batch.row_keys)
        return capture(batch, plan)

    monkeypatch.setattr(tiny_target, "capture", counted)
    return seen


def cached(target: Target, plan: CapturePlan | None = None, **options: Any) -> FeatureSource:
    plan = plan or everything(target)
    return FeatureSource(target, plan, MemoryCache(MemoryCacheConfig(**options)))


def blank_padding(features: Features, batch: Batch) -> Features:
    padding = batch.document_ids == PADDING_DOCUMENT
    return features.map(lambda x: x.masked_fill(padding.view(*padding.shape, *[1] * (x.ndim - 2)), 0))


def assert_same(found: Features, expected: Features) -> None:
    for ours, theirs in zip(found.tensors(), expected.tensors(), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


class TestSource:
    def test_without_a_cache_every_step_asks_the_target(
        self, tiny_target: Target, captures: list[tuple[str, ...]]
    ) -> None:
        source = FeatureSource(tiny_target, CapturePlan(layers=(2,)))
        for _ in range(2):
            source.features(replace(keyed(0), row_keys=()))
        assert len(captures) == 2

    def test_cached_rows_are_the_live_ones_bit_for_bit(
        self, tiny_target: Target, captures: list[tuple[str, ...]]
    ) -> None:
        source, batch = cached(tiny_target), keyed(0, 1, 2)
        live = blank_padding(tiny_target.capture(batch, source.plan), batch)
        for _ in range(3):
            assert_same(source.features(batch), live)
        assert len(captures) == 2

    def test_a_row_serves_in_any_batch_and_only_new_rows_are_run(
        self, tiny_target: Target, captures: list[tuple[str, ...]]
    ) -> None:
        source = cached(tiny_target)
        source.features(keyed(2, 1))
        found = source.features(keyed(0, 1, 2))
        assert captures == [("row2", "row1"), ("row0",)]
        expected = tiny_target.capture(keyed(0, 1, 2), source.plan)
        for row, slots in enumerate((9, 3, 9)):
            alone = expected.map(lambda x, i=row: x[i : i + 1, :slots])  # type: ignore[misc]  # noqa: B023
            assert_equal(found, alone, slice(slots), row)

    def test_positions_with_an_axis_before_the_rows_are_split_too(self, tiny_target: Target) -> None:
        seen = []

        class Fake:
            facts, tokenizer = tiny_target.facts, tiny_target.tokenizer

            def capture(self, batch: Batch, plan: CapturePlan) -> Features:
                seen.append(batch.positions)
                return Features(last_hidden=torch.zeros(*batch.ids.shape, 4))

        source = FeatureSource(Fake(), CapturePlan(last_hidden=True), MemoryCache(MemoryCacheConfig()))  # type: ignore[arg-type]
        for rows in ((0,), (0, 2)):
            batch = keyed(*rows)
            source.features(replace(batch, positions=batch.positions.expand(3, -1, -1)))
        assert torch.equal(seen[1], keyed(0, 2).positions[1:].expand(3, -1, -1))

    def test_a_batch_with_extras_is_run_whole(self, tiny_target: Target) -> None:
        seen = []

        class Fake:
            facts, tokenizer = tiny_target.facts, tiny_target.tokenizer

            def capture(self, batch: Batch, plan: CapturePlan) -> Features:
                seen.append(batch.row_keys)
                return Features(last_hidden=torch.zeros(*batch.ids.shape, 4))

        source = FeatureSource(Fake(), CapturePlan(last_hidden=True), MemoryCache(MemoryCacheConfig()))  # type: ignore[arg-type]
        source.features(keyed(0))
        source.features(replace(keyed(0, 1), extras={"pixel_values": torch.zeros(5)}))
        source.features(replace(keyed(1, 0), extras={"pixel_values": torch.zeros(5)}))
        assert seen == [("row0",), ("row0", "row1")]

    def test_rows_without_keys_cannot_be_cached(self, tiny_target: Target) -> None:
        with pytest.raises(ValueError, match="2 rows come with 0 keys"):
            cached(tiny_target).features(replace(keyed(0, 1), row_keys=()))


class TestMemory:
    def test_what_does_not_fit_is_computed_again(self, tiny_target: Target, captures: list[tuple[str, ...]]) -> None:
        plan = CapturePlan(layers=(2,))
        one_row = 9 * 64 * 4 / 1e9
        source = cached(tiny_target, plan, max_gb=1.5 * one_row)
        for _ in range(2):
            source.features(keyed(0, 2))
        assert captures == [("row0", "row2"), ("row2",)]
        source.features(keyed(0))
        assert len(captures) == 2

    def test_a_smaller_type_is_the_same_in_every_epoch(self, tiny_target: Target) -> None:
        batch = keyed(0, 1, 2)
        exact = blank_padding(tiny_target.capture(batch, everything(tiny_target)), batch)
        source = cached(tiny_target, dtype="bfloat16")
        first, second = source.features(batch), source.features(batch)
        rounded = exact.map(lambda x: x.bfloat16().to(x.dtype) if x.is_floating_point() else x)
        assert_same(first, rounded)
        assert_same(second, rounded)

    def test_what_it_keeps_is_its_own(self) -> None:
        cache, hidden = MemoryCache(MemoryCacheConfig()), torch.ones(1, 2, 3)
        cache.put("a", Features(last_hidden=hidden))
        hidden.zero_()
        found = cache.get("a")
        assert found is not None
        assert bool(found.last_hidden.all())  # type: ignore[union-attr]
        assert cache.get("b") is None

    def test_another_plan_is_refused(self, tiny_target: Target) -> None:
        cache = MemoryCache(MemoryCacheConfig())
        for _ in range(2):
            FeatureSource(tiny_target, CapturePlan(layers=(4, 2)), cache)
        with pytest.raises(UserError) as caught:
            FeatureSource(tiny_target, CapturePlan(layers=(2, 5)), cache)
        assert str(caught.value) == (
            "the cache in memory holds features that do not fit this run (layers is [2, 4], this run needs [2, 5]); "
            "clear it or use another"
        )

    @pytest.mark.parametrize("options", [{"max_gb": 0}, {"dtype": "int8"}, {"size": 3}])
    def test_bad_options(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            MemoryCacheConfig(**options)


def test_the_fingerprint_names_all_that_decides_a_rows_features(tiny_target: Target) -> None:
    plan = CapturePlan(layers=(4, 2))
    base = fingerprint_of(tiny_target, plan)
    assert base == fingerprint_of(tiny_target, CapturePlan(layers=(2, 4)))

    class Other:
        facts, tokenizer = tiny_target.facts, tiny_target.tokenizer

    other: Any = Other()
    assert fingerprint_of(other, plan) == base
    for changed in (
        fingerprint_of(tiny_target, plan, revision="v2"),
        fingerprint_of(tiny_target, CapturePlan(layers=(2, 4), last_hidden=True)),
    ):
        assert changed != base
    for name, value in (("name_or_path", "x"), ("dtype", "bfloat16"), ("num_layers", 9), ("model_type", "x")):
        other.facts = replace(tiny_target.facts, **{name: value})
        assert fingerprint_of(other, plan) != base

    class Tokenizer:
        chat_template = "another"

    other.facts, other.tokenizer = tiny_target.facts, Tokenizer()
    with pytest.raises(UserError, match="chat_template is"):
        check_fingerprint("here", base, fingerprint_of(other, plan))
