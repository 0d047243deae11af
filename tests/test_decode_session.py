"""Decoding sessions against fresh forwards of the plain model: roll back, trees, greedy text."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from target_checks import Load, Plain, random_ids, reference
from tiny_models import FAMILIES, WINDOW
from torch import Tensor

from specdec_core.capture.features import CapturePlan, Features
from specdec_core.errors import UserError
from specdec_core.testing.batches import batch_of

PLAN = CapturePlan(layers=(1, 3), last_hidden=True, argmax=True)


def full(plain: Plain, family: str, ids: list[int]) -> tuple[Features, Tensor]:
    features, logits = reference(plain(family), ids)
    return Features({k: features.hidden[k] for k in PLAN.layers}, features.last_hidden, None, features.argmax), logits


class TestDecode:
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    @pytest.mark.parametrize("family", FAMILIES)
    @settings(deadline=None, max_examples=6)
    @given(steps=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=6))
    def test_after_any_roll_back_a_session_equals_a_fresh_forward(
        self, load: Load, plain: Plain, family: str, attention: str, steps: list[tuple[int, int]]
    ) -> None:
        target = load(family, attention)
        kept = random_ids(WINDOW + 2, 1)
        session = target.decode(PLAN, capacity=64)
        logits, features = session.prefill(batch_of([[kept]]))
        expected, all_logits = full(plain, family, kept)
        torch.testing.assert_close(logits, all_logits[-1], rtol=1e-4, atol=1e-4)
        self.assert_slots(features, expected, slice(None))
        for step, (count, keep) in enumerate(steps):
            drafted = random_ids(count, 100 + step)
            logits, features = session.forward(torch.tensor(drafted))
            expected, all_logits = full(plain, family, kept + drafted)
            torch.testing.assert_close(logits, all_logits[len(kept) :], rtol=1e-4, atol=1e-4)
            self.assert_slots(features, expected, slice(len(kept), None))
            keep = min(keep, count)
            session.keep(range(keep))
            kept = kept + drafted[:keep]
            assert session.length == len(kept)

    @staticmethod
    def assert_slots(found: Features, expected: Features, slots: slice) -> None:
        for ours, theirs in zip(found.tensors(), expected.select(slots).tensors(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gemma2"])
    @settings(deadline=None, max_examples=8)
    @given(data=st.data(), count=st.integers(2, 8))
    def test_each_node_of_a_tree_sees_its_own_path_alone(
        self, load: Load, plain: Plain, family: str, data: st.DataObject, count: int
    ) -> None:
        parents = [data.draw(st.integers(-1, slot - 1)) for slot in range(count)]
        paths: list[list[int]] = []
        for slot, parent in enumerate(parents):
            paths.append([*(paths[parent] if parent >= 0 else []), slot])
        prompt, drafted = random_ids(WINDOW, 1), random_ids(count, 2)
        session = load(family).decode(PLAN, capacity=64)
        session.prefill(batch_of([[prompt]]))
        logits, features = session.forward(torch.tensor(drafted), parents)
        for slot, path in enumerate(paths):
            expected, alone = full(plain, family, prompt + [drafted[node] for node in path])
            torch.testing.assert_close(logits[slot], alone[-1], rtol=1e-4, atol=1e-4)
            self.assert_slots(features.select(slice(slot, slot + 1)), expected, slice(-1, None))
        path = data.draw(st.sampled_from([[], *paths]))
        session.keep(path)
        assert session.length == len(prompt) + len(path)
        kept = prompt + [drafted[node] for node in path]
        logits, _ = session.forward(torch.tensor([5, 6]))
        torch.testing.assert_close(logits, full(plain, family, [*kept, 5, 6])[1][-2:], rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_greedy_by_guesses_equals_the_models_own_generation(self, load: Load, plain: Plain, family: str) -> None:
        prompt = random_ids(9, 3)
        own = plain(family).generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None)
        expected = own[0, len(prompt) :].tolist()
        session = load(family).decode(CapturePlan(), capacity=64)
        logits, _ = session.prefill(batch_of([[prompt]]))
        found = [int(logits.argmax())]
        while len(found) < len(expected):
            right = expected[len(found) : len(found) + 2]
            logits, _ = session.forward(torch.tensor([found[-1], *right, 3, 4][:5]))
            emitted = logits.argmax(-1).tolist()
            agreed = next((i for i, token in enumerate(right) if emitted[i] != token), len(right))
            session.keep(range(agreed + 1))
            found += emitted[: agreed + 1]
        assert found[: len(expected)] == expected

    def test_several_rows_or_one_token_give_the_same_logits(self, load: Load) -> None:
        prompt, drafted = random_ids(9, 3), random_ids(5, 4)
        at_once, one_by_one = (load("llama").decode(CapturePlan(), capacity=32) for _ in range(2))
        at_once.prefill(batch_of([[prompt]]))
        one_by_one.prefill(batch_of([[prompt]]))
        logits, _ = at_once.forward(torch.tensor(drafted))
        single = torch.cat([one_by_one.forward(torch.tensor([token]))[0] for token in drafted])
        torch.testing.assert_close(logits, single, rtol=1e-4, atol=1e-4)
        assert torch.equal(logits.argmax(-1), single.argmax(-1))

    def test_two_sessions_do_not_disturb_each_other(self, load: Load, plain: Plain) -> None:
        prompts = [random_ids(5, 1), random_ids(8, 2)]
        sessions = [load("llama").decode(CapturePlan(), capacity=32) for _ in prompts]
        for session, prompt in zip(sessions, prompts, strict=True):
            session.prefill(batch_of([[prompt]]))
        for session, prompt in zip(sessions, prompts, strict=True):
            logits, _ = session.forward(torch.tensor([5, 6]))
            torch.testing.assert_close(logits, full(plain, "llama", [*prompt, 5, 6])[1][-2:], rtol=1e-4, atol=1e-4)

    def test_a_full_session_says_so(self, load: Load) -> None:
        session = load("llama").decode(CapturePlan(), capacity=6)
        session.prefill(batch_of([[random_ids(5)]]))
        with pytest.raises(UserError, match="would grow to 7 tokens; this session was opened with room for 6"):
            session.forward(torch.tensor([5, 6]))
        assert session.length == 5
        session.forward(torch.tensor([5]))

    @pytest.mark.parametrize("path", [[1, 0], [0, 0], [0, 3], [-1]])
    def test_only_a_path_through_the_last_slots_can_be_kept(self, load: Load, path: list[int]) -> None:
        session = load("llama").decode(CapturePlan(), capacity=16)
        session.prefill(batch_of([[random_ids(5)]]))
        session.forward(torch.tensor([5, 6, 7]))
        with pytest.raises(ValueError, match="no ascending path through the last 3 slots"):
            session.keep(path)

    def test_trees_need_sdpa(self, load: Load) -> None:
        session = load("gemma2").decode(CapturePlan(), capacity=16)
        session.prefill(batch_of([[random_ids(5)]]))
        with pytest.raises(UserError, match=r'only with target\.attention = "sdpa"'):
            session.forward(torch.tensor([5, 6]), [-1, -1])
        session.forward(torch.tensor([5, 6]), [-1, 0])
