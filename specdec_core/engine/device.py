"""Which device a name such as `auto` or `cuda:1` means on this machine."""

from __future__ import annotations

import torch

from specdec_core.errors import UserError


def choose_device(name: str) -> str:
    """`cpu` or `cuda:N` for `auto`, `cpu`, `cuda` or `cuda:N`. Raises UserError if there is no such device."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise UserError(f'engine.device is "{name}", but torch finds no CUDA device; set engine.device = "cpu"')
    index = int(name.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise UserError(f'engine.device is "{name}", but the last CUDA device is cuda:{last}; choose another')
    return f"cuda:{index}"
