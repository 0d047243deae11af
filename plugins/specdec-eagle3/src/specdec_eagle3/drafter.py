"""Chain drafting with a KV cache."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from specdec_core.algorithm.proposal import Drafter, Proposal, Sampling, Verified
from specdec_eagle3.config import Eagle3Config
from specdec_eagle3.model import Eagle3Draft
from specdec_eagle3.positions import in_decoding


class CachedAttention:
    """The attention plan of decoding: new rows attend the cache and each other, causally."""

    def __init__(self, num_layers: int) -> None:
        self.keys: list[Tensor | None] = [None] * num_layers
        self.values: list[Tensor | None] = [None] * num_layers
        self.length = 0
        self.only_last = False

    def queries(self, layer: int) -> Tensor | None:
        """With `only_last`, the last layer's output is needed at the last new row only."""
        return torch.tensor([-1]) if self.only_last and layer == len(self.keys) - 1 else None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Write the new rows behind `length` and attend; `length` itself moves by `advance`."""
        end = self.length + key.shape[0]
        keys = self._write(self.keys, layer, key, end)
        values = self._write(self.values, layer, value, end)
        mask = None
        if query.shape[0] > 1:
            mask = torch.ones(query.shape[0], end, dtype=torch.bool, device=query.device).tril_(end - query.shape[0])
        out = F.scaled_dot_product_attention(
            query.transpose(0, 1).unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0), mask, enable_gqa=True
        )
        return out.squeeze(0).transpose(0, 1)

    def _write(self, buffers: list[Tensor | None], layer: int, rows: Tensor, end: int) -> Tensor:
        """Put rows [n, heads, d] at the cache's end and return the filled part [heads, end, d]."""
        buffer = buffers[layer]
        if buffer is None or buffer.shape[1] < end:
            grown = rows.new_empty(rows.shape[1], max(256, 2 * end), rows.shape[2])
            if buffer is not None:
                grown[:, : self.length] = buffer[:, : self.length]
            buffers[layer] = buffer = grown
        buffer[:, self.length : end] = rows.transpose(0, 1)
        return buffer[:, :end]


class Eagle3Drafter(Drafter):
    """Slot i reads the target's states at i and the token after it; guesses are fed back as in training."""

    def __init__(self, draft: Eagle3Draft, options: Eagle3Config) -> None:
        self.draft = draft
        self.options = options
        self.attention = CachedAttention(len(draft.layers))
        self.verified = 0
        self.state: Tensor | None = None

    def begin(self, verified: Verified) -> None:
        """A new sequence."""
        self.attention.length = self.verified = 0
        self.accept(verified)

    def accept(self, verified: Verified) -> None:
        """Forget the guesses' keys, then read the accepted slots with the target's own states."""
        self.attention.length = self.verified
        hidden = self.draft.project_hidden_states(verified.features.stacked())
        positions = in_decoding(verified, self.options)
        self.state = self._step(self._following(verified), hidden, positions)
        self.verified = self.attention.length
        self.position = positions[..., -1:] + 1

    def _following(self, verified: Verified) -> Tensor:
        """[1, m, H] embeddings of the tokens after the slots; if merged, as the target read them, but the last."""
        merged, ids = verified.features.embeds, verified.ids.unsqueeze(0)
        if merged is None:
            return self.draft.embed_input_ids(ids[:, 1:])
        return torch.cat([merged[:, 1:], self.draft.embed_input_ids(ids[:, -1:])], dim=1)

    def _step(self, embeds: Tensor, hidden: Tensor, positions: Tensor) -> Tensor:
        """[1, 1, H] the backbone's output at the last of the new rows; `positions` [n] or [A, n]."""
        count = embeds.shape[1]
        self.attention.only_last = count > 1
        out = self.draft.backbone(embeds, hidden, self.attention, positions.unsqueeze(-2))
        self.attention.length += count
        return out[:, -1:]

    def propose(self, num_tokens: int, sampling: Sampling) -> Proposal:
        """A chain of at most `num_tokens`, greedy or sampled from the draft's own distribution.

        Whether it goes on depends on what it has drafted and on nothing of the target, so that rejection sampling
        stays exact.
        """
        assert self.state is not None
        state, tokens, probs, confidence = self.state, [], [], 1.0
        for k in range(num_tokens):
            logits = self.draft.compute_logits(state)[0, -1].float()
            if sampling.temperature > 0:
                logits = logits / sampling.temperature
                distribution = logits.softmax(-1)
                choice = torch.multinomial(distribution, 1, generator=sampling.generator)
                probs.append(self.draft.over_target_vocabulary(distribution))
            else:
                choice = logits.argmax(-1, keepdim=True)
            token = self.draft.target_ids(choice)
            tokens.append(token)
            if self.options.min_confidence:
                confidence *= float((logits[choice] - logits.logsumexp(-1)).exp())
                if confidence < self.options.min_confidence:
                    break
            if k + 1 < num_tokens:
                embeds = self.draft.embed_input_ids(token.unsqueeze(0))
                state = self._step(embeds, self.draft.feedback(state), self.position + k)
        return Proposal(torch.cat(tokens), probs=torch.stack(probs) if probs else None)
