"""A tiny target in plain torch: everything that a step or a drafter may ask for, and nothing else to lay hands on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specdec_core.capture.features import CapturePlan, Features
from specdec_core.config.run import Dtype
from specdec_core.data.batch import PADDING_DOCUMENT, Batch
from specdec_core.errors import UserError
from specdec_core.target.base import DecodeSession, Target, TargetFacts, Teacher
from specdec_core.testing.tokenizer import tiny_tokenizer

FACTS = TargetFacts(
    name_or_path="tiny",
    model_type="tiny",
    hidden_size=32,
    num_layers=8,
    vocab_size=288,
    intermediate_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    hidden_act="silu",
    rms_norm_eps=1e-5,
    max_position_embeddings=512,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    attention_bias=False,
    tie_word_embeddings=False,
    dtype="float32",
    bos_token_id=1,
    stop_token_ids=(2,),
)
IMAGE_FACTS = replace(FACTS, merged_embeds=True, rope_parameters={**FACTS.rope_parameters, "mrope_section": [2, 1, 1]})
"""Of a target that reads images, at positions on three axes."""
PEAK = 4.0
"""Standard deviation of the logits: the first choice leads the second far beyond what rounding can turn."""

State = dict[str, Tensor]


class TinyWeights(nn.Module):
    """The weights of a `TinyTarget`, float32 and frozen, for who trains a target; an algorithm never sees them."""

    def __init__(self, facts: TargetFacts, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        hidden, inner, vocab = facts.hidden_size, facts.intermediate_size, facts.vocab_size
        queries, keys = (heads * facts.head_dim for heads in (facts.num_attention_heads, facts.num_key_value_heads))

        def matrix(rows: int, columns: int, scale: float = 1.0) -> Tensor:
            return torch.randn(rows, columns, generator=generator) * scale / math.sqrt(columns)

        def vector() -> Tensor:
            return 1 + 0.2 * torch.randn(hidden, generator=generator)

        def layer() -> State:
            return {
                # Sharp attention, so that every key and position shows in what comes out.
                "self_attn.q_proj.weight": matrix(queries, hidden, 2.0),
                "self_attn.k_proj.weight": matrix(keys, hidden, 2.0),
                "self_attn.v_proj.weight": matrix(keys, hidden),
                "self_attn.o_proj.weight": matrix(hidden, queries),
                "mlp.gate_proj.weight": matrix(inner, hidden),
                "mlp.up_proj.weight": matrix(inner, hidden),
                "mlp.down_proj.weight": matrix(hidden, inner),
                "input_layernorm.weight": vector(),
                "post_attention_layernorm.weight": vector(),
            }

        self.embedding = nn.Parameter(math.sqrt(hidden) * matrix(vocab, hidden))
        # Rows of one length, so that a state along a token's row says that token.
        self.head = nn.Parameter(PEAK * F.normalize(matrix(vocab, hidden), dim=-1))
        self.norm = nn.Parameter(vector())
        self.layers = [{name: nn.Parameter(x) for name, x in layer().items()} for _ in range(facts.num_layers)]
        self.of_layers = nn.ParameterList([weight for layer in self.layers for weight in layer.values()])
        self.requires_grad_(False)


class TinyTarget(Target):
    """A random pre-norm decoder on the CPU: grouped queries, rotary positions, gated MLP.

    Each forward is computed anew in float64 from the token ids, so that a session, a capture and any batch of the
    same tokens give the same values; what is handed out is of the target's type. What padding's features hold is
    noise.
    """

    def __init__(self, dtype: Dtype = "float32", seed: int = 0, facts: TargetFacts = FACTS) -> None:
        """`facts` may say other things than `FACTS` of what is not computed here."""
        self.device = "cpu"
        self.facts = replace(facts, dtype=dtype)
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._weights = TinyWeights(FACTS, seed)
        self._fingerprint = self._sums()

    @cached_property
    def tokenizer(self) -> Any:
        """A tokenizer of the target's vocabulary."""
        return tiny_tokenizer(FACTS.vocab_size)

    @property
    def is_untouched(self) -> bool:
        """Whether the weights are as they were made, and none of them takes part in autograd."""
        return self._sums() == self._fingerprint and not any(x.requires_grad for x in self._weights.parameters())

    def _sums(self) -> list[float]:
        return [float(x.detach().double().abs().sum()) for x in self._weights.parameters()]

    def embed(self, ids: Tensor) -> Tensor:
        """[..., H] input embeddings of token ids."""
        return self._weights.embedding[ids].to(self._dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V] from the post-norm hidden state [..., H]; of another type than the target's it is refused."""
        return F.linear(hidden, self._weights.head.to(self._dtype))

    @torch.no_grad()
    def teacher(self, hidden: Tensor, rows: Tensor | None = None) -> Teacher:
        """The distribution at post-norm states [N, H]."""
        logits = self.logits(hidden).float()
        return Teacher(logits if rows is None else logits[:, rows], logits.logsumexp(-1), logits.argmax(-1))

    def embed_rows(self, ids: Tensor | None = None) -> Tensor:
        """A copy of rows of the embedding matrix, [n, H]; all rows if `ids` is None."""
        weight = self._weights.embedding.detach()
        return (weight.clone() if ids is None else weight[ids]).to(self._dtype)

    def head_rows(self, ids: Tensor | None = None) -> Tensor:
        """A copy of rows of the head's matrix, [n, H]; all rows if `ids` is None."""
        weight = self._weights.head.detach()
        return (weight.clone() if ids is None else weight[ids]).to(self._dtype)

    def layer_state(self, index: int) -> State:
        """A copy of decoder layer `index`'s weights; index L gives the final norm as `weight`."""
        layers = self._weights.layers
        if not 0 <= index <= len(layers):
            raise UserError(f"the target has decoder layers 0 to {len(layers) - 1}, not {index}")
        state = {"weight": self._weights.norm} if index == len(layers) else layers[index]
        return {name: weight.detach().clone().to(self._dtype) for name, weight in state.items()}

    def capture(self, batch: Batch, plan: CapturePlan) -> Features:
        """Run the target over a batch, documents apart, and return what `plan` names."""
        noise = torch.Generator().manual_seed(batch.ids.numel())
        rows = []
        for ids, positions, documents in zip(batch.ids, batch.positions, batch.document_ids, strict=True):
            states = torch.randn(self.facts.num_layers + 2, len(ids), self.facts.hidden_size, generator=noise).double()
            for document in documents.unique().tolist():
                slots = documents == document
                if document != PADDING_DOCUMENT:
                    mask = torch.ones(int(slots.sum()), int(slots.sum()), dtype=torch.bool).tril()
                    states[:, slots] = self._states(ids[slots], positions[slots], mask)
            rows.append(states)
        return self._features(torch.stack(rows, dim=1), plan)

    def decode(self, plan: CapturePlan, capacity: int) -> DecodeSession:
        """A new session with room for `capacity` tokens, whose features follow `plan`."""
        return TinySession(self, plan, capacity)

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, extras: Sequence[Mapping[str, Tensor]] = ()
    ) -> list[list[int]]:
        """Greedy continuations of a batch of prompts, each with its stop token if it came to one."""
        return [self._continuation(list(prompt), max_new_tokens) for prompt in prompts]

    def _continuation(self, text: list[int], max_new_tokens: int) -> list[int]:
        start = len(text)
        while len(text) < start + max_new_tokens and not (len(text) > start and text[-1] in self.facts.stop_token_ids):
            mask = torch.ones(len(text), len(text), dtype=torch.bool).tril()
            last = self._states(torch.tensor(text), torch.arange(len(text)), mask)[-1, -1]
            text.append(int(self.logits(last.to(self._dtype)).argmax()))
        return text[start:]

    def _features(self, states: Tensor, plan: CapturePlan) -> Features:
        """From the states [L + 2, B, S, H] of every layer and of the final norm."""
        count = self.facts.num_layers
        if unknown := [layer for layer in plan.layers if not 0 <= layer <= count]:
            raise UserError(f"layer {unknown[0]} cannot be captured: the target has layer ids 0 to {count}")
        states = states.to(self._dtype)
        return Features(
            hidden={layer: states[layer] for layer in sorted(plan.layers)},
            last_hidden=states[-1] if plan.last_hidden else None,
            embeds=states[0] if plan.embeds else None,
            argmax=self.logits(states[-1]).argmax(-1) if plan.argmax else None,
        )

    def _states(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """[L + 2, n, H]: the input of each layer, the last one's output, and that after the final norm.

        mask [n, n] bool says which slots each slot sees.
        """
        facts, weights = self.facts, self._weights
        x = weights.embedding[ids].double()
        states = [x]
        half = facts.head_dim // 2
        frequencies = 10000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
        angles = positions[:, None].double() * frequencies
        turn = torch.polar(torch.ones_like(angles), angles)[:, None]
        for state in weights.layers:
            layer = {name: weight.double() for name, weight in state.items()}
            normed = self._norm(x, layer["input_layernorm.weight"])
            query, key, value = (
                (normed @ layer[f"self_attn.{name}_proj.weight"].T).view(len(ids), -1, facts.head_dim) for name in "qkv"
            )
            query, key = (_rotated(part, turn) for part in (query, key))
            group = query.shape[1] // key.shape[1]
            key, value = (part.repeat_interleave(group, dim=1) for part in (key, value))
            scores = torch.einsum("qhd,khd->hqk", query, key) / math.sqrt(facts.head_dim)
            shares = scores.masked_fill(~mask, -torch.inf).softmax(-1)
            mixed = torch.einsum("hqk,khd->qhd", shares, value).flatten(-2)
            x = x + mixed @ layer["self_attn.o_proj.weight"].T
            normed = self._norm(x, layer["post_attention_layernorm.weight"])
            gate, up = (normed @ layer[f"mlp.{name}_proj.weight"].T for name in ("gate", "up"))
            x = x + (F.silu(gate) * up) @ layer["mlp.down_proj.weight"].T
            states.append(x)
        return torch.stack([*states, self._norm(x, weights.norm.double())])

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.facts.rms_norm_eps).rsqrt() * weight


class TinySession(DecodeSession):
    """Holds the tokens and which of them each one sees; there is no cache to be wrong."""

    def __init__(self, target: TinyTarget, plan: CapturePlan, capacity: int) -> None:
        self._target, self._plan, self._capacity = target, plan, capacity
        self._ids = torch.empty(0, dtype=torch.int64)
        self._positions = torch.empty(0, dtype=torch.int64)
        self._sees = torch.empty(0, 0, dtype=torch.bool)
        self._start = 0

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._ids.numel()

    def prefill(self, batch: Batch) -> tuple[Tensor, Features]:
        """Read the prompt (one row, no padding). Returns the last slot's logits [V] and all slots' features."""
        logits, features = self._append(batch.ids[0], list(range(-1, batch.ids.shape[1] - 1)))
        return logits[-1], features

    def forward(self, ids: Tensor, parents: Sequence[int] | None = None) -> tuple[Tensor, Features]:
        """Append `ids` [n] and return logits [n, V] and features of those slots, [1, n, ...]."""
        return self._append(ids, list(range(-1, ids.numel() - 1)) if parents is None else parents)

    def keep(self, path: Sequence[int]) -> None:
        """Of the slots of the last `forward`, keep those in `path` and roll the others back."""
        kept = torch.tensor([*range(self._start), *(self._start + slot for slot in path)])
        self._ids, self._positions = self._ids[kept], self._positions[kept]
        self._sees = self._sees[kept][:, kept]

    @torch.inference_mode()
    def _append(self, ids: Tensor, parents: Sequence[int]) -> tuple[Tensor, Features]:
        start, end = self.length, self.length + ids.numel()
        sees = torch.zeros(end, end, dtype=torch.bool)
        sees[:start, :start] = self._sees
        for slot, parent in enumerate(parents, start):
            sees[slot] = sees[start + parent] if parent >= 0 else torch.arange(end) < start
            sees[slot, slot] = True
        positions = sees[start:].sum(-1) - 1
        if int(positions.max()) >= self._capacity:
            raise UserError(f"the sequence would grow to {int(positions.max()) + 1} tokens, beyond {self._capacity}")
        self._start, self._sees = start, sees
        self._ids, self._positions = torch.cat([self._ids, ids]), torch.cat([self._positions, positions])
        states = self._target._states(self._ids, self._positions, sees)[:, None, start:]
        features = self._target._features(states, CapturePlan(**{**vars(self._plan), "last_hidden": True}))
        assert features.last_hidden is not None
        logits = self._target.logits(features.last_hidden[0])
        return logits, self._target._features(states, self._plan)


def _rotated(x: Tensor, turn: Tensor) -> Tensor:
    """x [n, heads, d], its halves taken as complex numbers and turned."""
    turned = torch.complex(*x.chunk(2, dim=-1)) * turn
    return torch.cat([turned.real, turned.imag], dim=-1)


def weights_of(target: TinyTarget) -> TinyWeights:
    """What `Backbone.module` gives for other targets."""
    return target._weights


def states_saying(target: Target, tokens: Tensor) -> Tensor:
    """[n, H] post-norm states at which a `TinyTarget` would put `tokens` [n] next."""
    rows = target.head_rows(tokens)
    return F.normalize(rows.float(), dim=-1).to(rows.dtype) * math.sqrt(rows.shape[-1])
