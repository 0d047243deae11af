"""Filling a draft from the tensors of an exported one."""

from __future__ import annotations

from collections.abc import Container, Mapping

import torch
from torch import Tensor

from specdec_core.errors import UserErrors


@torch.no_grad()
def copy_tensors(own: Mapping[str, Tensor], given: Mapping[str, Tensor], ignored: Container[str] = ()) -> None:
    """Copy `given` into the parameters `own`, all under exported names; names in `ignored` are no parameters.

    Raises UserErrors naming every missing, unexpected or misshapen tensor; nothing is then changed.
    """
    problems = [f"draft tensor {name} is missing" for name in own if name not in given]
    for name, tensor in given.items():
        if name in ignored:
            continue
        if name not in own:
            problems.append(f"draft tensor {name} is not one of this draft's")
        elif tensor.shape != own[name].shape:
            problems.append(f"draft tensor {name} has shape {list(tensor.shape)}, expected {list(own[name].shape)}")
    if problems:
        raise UserErrors(problems)
    for name, parameter in own.items():
        parameter.copy_(given[name])
