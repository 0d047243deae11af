"""Targets that recompute everything: the plain twins of a target with a KV cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from specdec_core.algorithm.proposal import Drafter, Proposal, Sampling, Verified
from specdec_core.capture.features import CapturePlan, Features
from specdec_core.data.batch import Batch
from specdec_core.target.base import DecodeSession, Target, TargetFacts, Teacher


class PlainSession(DecodeSession):
    """Holds the ids and nothing else. A slot's feature is (position, id), so that a reader can check what it gets."""

    def __init__(self, target: PlainTarget, capacity: int) -> None:
        self.target, self.capacity = target, capacity
        self.ids: list[int] = []
        self.forwards: list[int] = []
        self.parents: list[int] | None = None

    @property
    def length(self) -> int:
        return len(self.ids)

    def prefill(self, batch: Batch) -> tuple[Tensor, Features]:
        assert batch.positions.tolist() == [list(range(batch.ids.shape[1]))]
        logits, features = self._append(batch.ids[0])
        return logits[-1], features

    def forward(self, ids: Tensor, parents: Sequence[int] | None = None) -> tuple[Tensor, Features]:
        self.forwards.append(ids.numel())
        self.parents = None if parents is None else list(parents)
        return self._append(ids) if parents is None else self._append_tree(ids, list(parents))

    def keep(self, path: Sequence[int]) -> None:
        start = len(self.ids) - self.forwards[-1]
        if self.parents is None:
            assert list(path) == list(range(len(path)))
        else:
            assert [self.parents[slot] for slot in path] == [-1, *path[:-1]]
        assert 1 <= len(path) <= self.forwards[-1]
        self.ids[start:] = [self.ids[start + slot] for slot in path]

    def _append(self, ids: Tensor) -> tuple[Tensor, Features]:
        start = self.length
        self.ids += ids.tolist()
        assert self.length <= self.capacity
        positions = torch.arange(start, self.length)
        return (
            self.target.next_logits(torch.tensor(self.ids))[start:],
            Features(last_hidden=torch.stack([positions, ids], dim=-1).unsqueeze(0)),
        )

    def _append_tree(self, ids: Tensor, parents: list[int]) -> tuple[Tensor, Features]:
        """Each slot by a text of its own: what stands, and the tokens on the way to it."""
        paths: list[list[int]] = []
        for token, parent in zip(ids.tolist(), parents, strict=True):
            paths.append([*(paths[parent] if parent >= 0 else []), token])
        assert self.length + max(map(len, paths)) <= self.capacity
        logits = torch.stack([self.target.next_logits(torch.tensor(self.ids + path))[-1] for path in paths])
        positions = torch.tensor([self.length + len(path) - 1 for path in paths])
        self.ids += ids.tolist()
        return logits, Features(last_hidden=torch.stack([positions, ids], dim=-1).unsqueeze(0))


class PlainTarget(Target):
    """`next_logits` maps the ids [S] of a text to the logits [S, V] of what follows each."""

    def __init__(
        self,
        next_logits: Callable[[Tensor], Tensor],
        vocab_size: int,
        *,
        context: int = 10**6,
        stop_token_ids: tuple[int, ...] = (),
        tokenizer: Any = None,
    ) -> None:
        self.next_logits = next_logits
        self.device = "cpu"
        self.tokenizer = tokenizer
        self.session: PlainSession
        self.facts = TargetFacts(
            name_or_path="plain",
            model_type="plain",
            hidden_size=2,
            num_layers=1,
            vocab_size=vocab_size,
            intermediate_size=2,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=2,
            hidden_act="silu",
            rms_norm_eps=1e-5,
            max_position_embeddings=context,
            rope_parameters={},
            attention_bias=False,
            tie_word_embeddings=False,
            dtype="float32",
            bos_token_id=None,
            stop_token_ids=stop_token_ids,
        )

    def decode(self, plan: CapturePlan, capacity: int) -> PlainSession:
        self.session = PlainSession(self, capacity)
        return self.session

    def embed(self, ids: Tensor) -> Tensor:
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        raise NotImplementedError

    def teacher(self, hidden: Tensor, rows: Tensor | None = None) -> Teacher:
        raise NotImplementedError

    def embed_rows(self, ids: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def head_rows(self, ids: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def layer_state(self, index: int) -> dict[str, Tensor]:
        raise NotImplementedError

    def capture(self, batch: Batch, plan: CapturePlan) -> Features:
        raise NotImplementedError

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        raise NotImplementedError


class ScriptedDrafter(Drafter):
    """Proposes what `script(text so far, how many)` says, and checks all that the loop hands it."""

    def __init__(self, script: Callable[[list[int], int], Sequence[int]]) -> None:
        self.script = script
        self.text: list[int] = []
        self.asked: list[int] = []

    def begin(self, verified: Verified) -> None:
        assert self.text == []
        self._read(verified)

    def propose(self, num_tokens: int, sampling: Sampling) -> Proposal:
        assert num_tokens > 0
        self.asked.append(num_tokens)
        return Proposal(torch.tensor(list(self.script(self.text, num_tokens)), dtype=torch.int64))

    def accept(self, verified: Verified) -> None:
        assert self.text
        self._read(verified)

    def _read(self, verified: Verified) -> None:
        """The slots follow on from those read before: the first is that of the last token emitted."""
        ids = verified.ids.tolist()
        assert verified.start == max(0, len(self.text) - 1)
        assert self.text[verified.start :] == ids[: len(self.text) - verified.start]
        self.text = self.text[: verified.start] + ids
        slots = [[verified.start + i, token] for i, token in enumerate(ids[:-1])]
        assert verified.features.last_hidden is not None
        assert verified.features.last_hidden.tolist() == [slots]
