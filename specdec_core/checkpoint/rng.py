"""The state of every random generator that a run may draw from, as tensors and JSON values."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state(device: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `set_rng_state` needs."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    tensors = {
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "torch": torch.get_rng_state(),
    }
    if device.startswith("cuda"):
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    values = {"python": [version, gauss], "numpy": [int(position), int(has_gauss), float(cached)]}
    return tensors, values


def set_rng_state(tensors: Mapping[str, Tensor], values: Mapping[str, Any], device: str) -> None:
    """Restore every generator; a CUDA state is used only where the run goes on on a CUDA device."""
    version, gauss = values["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    np.random.set_state(("MT19937", tensors["numpy"].numpy().astype(np.uint32), *values["numpy"]))
    torch.set_rng_state(tensors["torch"])
    if device.startswith("cuda") and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
