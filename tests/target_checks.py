"""What the tests of a target share: documents, batches, and the plain model to compare with.

The plain model is transformers' own with eager attention, run on one document at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tiny_models import VOCAB, WINDOW
from torch import Tensor

from specdec_causal_lm.target import CausalLMTarget
from specdec_core.capture.features import CapturePlan, Features
from specdec_core.data.batch import PADDING_DOCUMENT, Batch

LONG = 3 * WINDOW
Load = Callable[..., CausalLMTarget]
Plain = Callable[[str], Any]


def random_ids(count: int, seed: int = 0) -> list[int]:
    return torch.randint(3, VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def pack(rows: list[list[list[int]]]) -> Batch:
    """Rows of documents of ids, padded at the end with id 7."""
    slots = max(sum(map(len, row)) for row in rows)
    ids, positions, documents = [], [], []
    for row in rows:
        padding = slots - sum(map(len, row))
        ids.append([token for document in row for token in document] + [7] * padding)
        positions.append([slot for document in row for slot in range(len(document))] + [0] * padding)
        numbers = [number for number, document in enumerate(row) for _ in document]
        documents.append(numbers + [PADDING_DOCUMENT] * padding)
    shape = torch.tensor(ids)
    return Batch(shape, torch.tensor(positions), torch.ones_like(shape, dtype=torch.bool), torch.tensor(documents))


def everything(target: CausalLMTarget) -> CapturePlan:
    return CapturePlan(tuple(range(target.facts.num_layers + 1)), last_hidden=True, embeds=True, argmax=True)


def reference(model: Any, document: list[int]) -> tuple[Features, Tensor]:
    """Every feature of one document, and its logits [n, V], from the plain model."""
    before_norm = []
    last_layer = model.get_decoder().layers[-1]
    handle = last_layer.register_forward_hook(
        lambda _, args, output: before_norm.append(output[0] if isinstance(output, tuple) else output)
    )
    output = model(torch.tensor([document]), output_hidden_states=True)
    handle.remove()
    *states, last = output.hidden_states
    hidden = dict(enumerate([*states, before_norm[0]]))
    return Features(hidden, last, states[0], output.logits.argmax(-1)), output.logits[0]


def assert_equal(found: Features, expected: Features, slots: slice, row: int) -> None:
    for name, ours, theirs in [
        *((f"layer {layer}", found.hidden[layer], expected.hidden[layer]) for layer in expected.hidden),
        ("last_hidden", found.last_hidden, expected.last_hidden),
        ("embeds", found.embeds, expected.embeds),
    ]:
        torch.testing.assert_close(
            ours[row, slots], theirs[0], rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert torch.equal(found.argmax[row, slots], expected.argmax[0])
