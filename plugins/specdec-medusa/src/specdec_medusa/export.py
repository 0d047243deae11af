"""The draft under the tensor names that inference engines read, and back.

The names are the draft's own: `blocks.{head}.layers.{layer}.weight`, `....bias` and `lm_heads.{head}.weight`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from specdec_core.algorithm.base import ExportedDraft
from specdec_core.algorithm.exported import copy_tensors
from specdec_medusa.model import MedusaDraft


def to_exported(draft: MedusaDraft) -> ExportedDraft:
    """Trained tensors, with `d2t` and `t2d` where the draft vocabulary is a part of the target's."""
    tensors = {name: parameter.detach().cpu() for name, parameter in draft.named_parameters()}
    return ExportedDraft(dict(draft.config), {**tensors, **draft.vocabulary_tensors()})


def from_exported(draft: MedusaDraft, tensors: Mapping[str, Tensor]) -> None:
    """Fill the draft. Raises UserErrors naming every missing, unexpected or misshapen tensor."""
    copy_tensors(dict(draft.named_parameters()), tensors, ignored=("d2t", "t2d"))
