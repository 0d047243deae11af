"""Is a greedy output the target's own?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from specdec_core.capture.features import CapturePlan
from specdec_core.data.batch import Batch
from specdec_core.decode.loop import positions_after, prompt_batch
from specdec_core.target.base import Target

TIE = 1e-4


@dataclass(frozen=True)
class Comparison:
    """A greedy output beside the target's own.

    position  index of the first token that differs
    gap       how far below the highest logit the lower of the two tokens lies there; less than `TIE` is a tie:
              rounding decides between them, and what follows is not compared
    """

    verdict: Literal["identical", "tie", "different"]
    position: int | None = None
    gap: float | None = None


def compare(own: Sequence[int], other: Sequence[int], gap: Callable[[int, int, int], float]) -> Comparison:
    """Compare with the target's `own` output; `gap` takes a position and the two tokens there."""
    for position, (a, b) in enumerate(zip(own, other, strict=False)):
        if a != b:
            distance = gap(position, a, b)
            return Comparison("tie" if distance < TIE else "different", position, distance)
    if len(own) != len(other):
        return Comparison("different", min(len(own), len(other)))
    return Comparison("identical")


@torch.inference_mode()
def logit_gap(target: Target, prompt: Batch, answer: Sequence[int], a: int, b: int) -> float:
    """How far the lower of tokens `a` and `b` lies below the target's highest logit after a prompt (one row) and the
    first tokens of its answer."""
    length = prompt.ids.shape[1]
    ids = torch.cat([prompt.ids[0], prompt.ids.new_tensor(answer)])
    positions = torch.cat([prompt.positions[..., 0, :], positions_after(prompt, length, len(answer))], dim=-1)
    session = target.decode(CapturePlan(), len(ids))
    logits, _ = session.prefill(prompt_batch(ids, positions, prompt.extras).to(target.device))
    logits = logits.float()
    return float(logits.max() - torch.minimum(logits[a], logits[b]))
