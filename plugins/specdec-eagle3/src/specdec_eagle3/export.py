"""The draft under the tensor names that inference engines read, and back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from specdec_core.algorithm.base import ExportedDraft
from specdec_core.algorithm.exported import copy_tensors
from specdec_eagle3.model import Eagle3Draft

_NO_PARAMETERS = ("d2t", "t2d", "embed_tokens.weight")


def _outside(name: str, num_layers: int) -> str:
    return name.replace("layers.0.", "midlayer.", 1) if num_layers == 1 and name.startswith("layers.0.") else name


def to_exported(draft: Eagle3Draft) -> ExportedDraft:
    """Trained tensors, with `d2t` and `t2d` where the draft vocabulary is a part of the target's."""
    layers = len(draft.layers)
    tensors = {_outside(name, layers): p.detach().cpu() for name, p in draft.named_parameters()}
    return ExportedDraft(dict(draft.config), {**tensors, **draft.vocabulary_tensors()})


def from_exported(draft: Eagle3Draft, tensors: Mapping[str, Tensor]) -> None:
    """Fill the draft. Raises UserErrors naming every missing, unexpected or misshapen tensor."""
    own = {_outside(name, len(draft.layers)): p for name, p in draft.named_parameters()}
    given = {
        name.replace("layers.0.", "midlayer.", 1) if "midlayer.mlp.up_proj.weight" in own else name: tensor
        for name, tensor in tensors.items()
    }
    copy_tensors(own, given, ignored=_NO_PARAMETERS)
