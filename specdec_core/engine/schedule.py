"""The learning rate as a function of the step: linear warm-up, then decay. No state to save."""

from __future__ import annotations

import math

from specdec_core.config.run import TrainSection


def lr_factor(step: int, total_steps: int, train: TrainSection) -> float:
    """What the peak learning rate is multiplied by at `step`, counted from 0.

    Warm-up lasts ceil(warmup_ratio · total_steps) steps and rises linearly, never from zero: 1/w, 2/w, … 1.
    The decay then falls from 1 and would reach `min_lr_ratio` at `total_steps`, one past the last step.
    """
    warmup = math.ceil(train.warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    if train.schedule == "constant":
        return 1.0
    progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
    decay = 1.0 - progress if train.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return train.min_lr_ratio + (1.0 - train.min_lr_ratio) * decay
