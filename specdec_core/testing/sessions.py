"""What a backbone promises of decoding with a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from specdec_core.capture.features import CapturePlan, Features
from specdec_core.errors import UserError
from specdec_core.target.base import DecodeSession
from specdec_core.testing.batches import tree_paths
from specdec_core.testing.compare import assert_close
from specdec_core.testing.family import Family, assert_features
from specdec_core.testing.plugin import PluginContract
from specdec_core.testing.promises import promise

PLAN = CapturePlan(layers=(0, 2), last_hidden=True, argmax=True)
CAPACITY = 64
Prompt = Callable[[int, int], list[int]]
TREES = ((-1, -1), (-1, 0, 0, 1, 2), (-1, -1, 0, 1, 1, 4), (-1, 0, 1, -1, 3, 4))


class SessionContract(PluginContract):
    """Every step of a session is compared with the model reading the same tokens anew."""

    kind = "backbone"

    @pytest.fixture
    def prompt(self, family: Family) -> Prompt:
        """What makes the ids of a prompt, of about as many tokens as asked for."""
        return family.ids

    @promise("sessions")
    def test_a_session_computes_what_a_fresh_forward_computes(self, family: Family, prompt: Prompt) -> None:
        """A prompt, then one token, several, and one again."""
        text, session = prompt(7, 1), _begun(family, prompt(7, 1), check=True)
        for count in (1, 4, 1):
            text = _append(family, session, text, family.ids(count, 50 + count))
            session.keep(range(count))

    @promise("sessions")
    def test_sessions_do_not_disturb_each_other(self, family: Family, prompt: Prompt) -> None:
        """Two of them in turn."""
        texts = [prompt(5, 1), prompt(8, 2)]
        sessions = [_begun(family, text) for text in texts]
        for session, text in zip(sessions, texts, strict=True):
            _append(family, session, text, family.ids(2, 3))

    @promise("sessions")
    def test_a_full_session_says_so(self, family: Family, prompt: Prompt) -> None:
        """And can go on with fewer tokens."""
        text = prompt(5, 1)
        count = len(text)
        session = family.target.decode(PLAN, count + 1)
        session.prefill(family.batch([[text]]))
        with pytest.raises(UserError):
            session.forward(torch.tensor(family.ids(2, 3)))
        length = session.length
        assert length == count, f"after a refused forward the session holds {length} tokens, not {count}"
        _append(family, session, text, family.ids(1, 3))

    @promise("roll-back")
    @pytest.mark.parametrize("kept", [0, 1, 3])
    def test_what_is_not_kept_is_forgotten(self, family: Family, prompt: Prompt, kept: int) -> None:
        """None, some or all of a chain; then the session goes on, and rolls back again."""
        text, session = prompt(6, 1), _begun(family, prompt(6, 1))
        for round in range(3):
            drafted = family.ids(4, 60 + round)
            _append(family, session, text, drafted)
            session.keep(range(kept))
            text = text + drafted[:kept]
            assert session.length == len(text), f"after keep the session holds {session.length} tokens, not {len(text)}"
        _append(family, session, text, family.ids(2, 3))

    @promise("trees")
    @pytest.mark.parametrize("parents", TREES, ids=str)
    def test_each_token_of_a_tree_sees_its_own_path(
        self, family: Family, prompt: Prompt, parents: Sequence[int]
    ) -> None:
        """Against the model reading each path by itself."""
        start, drafted = prompt(6, 1), family.ids(len(parents), 2)
        session = _begun(family, start)
        logits, features = _tree(session, drafted, parents)
        for slot, path in enumerate(tree_paths(parents)):
            text = [*start, *(drafted[node] for node in path)]
            own = features.select(slice(slot, slot + 1))
            _check(family, text, logits[slot : slot + 1], own, f"in the tree {[*parents]}, token {slot}")

    @promise("roll-back")
    @pytest.mark.parametrize("parents", TREES, ids=str)
    def test_a_path_of_a_tree_can_be_kept(self, family: Family, prompt: Prompt, parents: Sequence[int]) -> None:
        """Then the session goes on as if the path had been read as a chain."""
        start = prompt(6, 1)
        for path in tree_paths(parents):
            drafted = family.ids(len(parents), 2)
            session = _begun(family, start)
            _tree(session, drafted, parents)
            session.keep(path)
            text = [*start, *(drafted[node] for node in path)]
            assert session.length == len(text), f"after keep the session holds {session.length} tokens, not {len(text)}"
            _append(family, session, text, family.ids(2, 3))


def _begun(family: Family, prompt: list[int], check: bool = False) -> DecodeSession:
    session = family.target.decode(PLAN, CAPACITY)
    assert session.length == 0, f"a new session holds {session.length} tokens"
    logits, features = session.prefill(family.batch([[prompt]]))
    assert session.length == len(prompt), f"after a prompt of {len(prompt)} tokens the session holds {session.length}"
    if check:
        assert_close(logits, family.reference(prompt).logits[-1], "logits after the prompt")
        assert_features(features, family.features(prompt, PLAN), "features of the prompt")
    return session


def _append(family: Family, session: DecodeSession, text: list[int], more: list[int]) -> list[int]:
    """Forward more tokens as a chain, compare, and return the longer text."""
    logits, features = session.forward(torch.tensor(more))
    text = text + more
    assert session.length == len(text), f"the session holds {session.length} tokens, not {len(text)}"
    _check(family, text, logits, features, f"{len(more)} tokens after {len(text) - len(more)}")
    return text


def _check(family: Family, text: list[int], logits: Tensor, features: Features, what: str) -> None:
    """Logits and features of the last slots of a text."""
    count = logits.shape[0]
    assert_close(logits, family.reference(text).logits[-count:], f"{what}: logits")
    expected = family.features(text, PLAN).select(slice(len(text) - count, len(text)))
    assert_features(features, expected, f"{what}: features")


def _tree(session: DecodeSession, ids: list[int], parents: Sequence[int]) -> tuple[Tensor, Features]:
    try:
        return session.forward(torch.tensor(ids), list(parents))
    except UserError as error:
        pytest.skip(f"trees are refused: {error}")
