"""Weights from outside: those of a draft from a run, a checkpoint or an exported draft, and a trained target's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from specdec_core.algorithm.base import TrainedAlgorithm
from specdec_core.algorithm.draft import Draft
from specdec_core.checkpoint import store
from specdec_core.data.vocab import VocabMap
from specdec_core.errors import UserError, UserErrors


@dataclass(frozen=True)
class SavedDraft:
    """Tensors and the vocabulary they were made for; `exported` says that they have the outside world's names."""

    path: Path
    tensors: dict[str, Tensor]
    vocab: VocabMap | None
    exported: bool

    def load_into(self, draft: Draft, algorithm: TrainedAlgorithm) -> None:
        """Set the draft's weights. Raises UserErrors naming what is missing, unexpected or misshapen."""
        if self.exported:
            algorithm.load_exported(draft, self.tensors)
        else:
            load_weights(draft, self.tensors, str(self.path))


def read_saved_draft(path: Path, vocab_size: int) -> SavedDraft:
    """Read a run directory (its newest checkpoint), a checkpoint or an exported draft.

    `vocab_size` is the target's. Raises UserError if `path` is none of these.
    """
    if (path / "model.safetensors").is_file():
        try:
            tensors = load_file(path / "model.safetensors")
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"draft.init_from: {path / 'model.safetensors'} cannot be read ({error}); export the draft again"
            ) from error
        offsets = tensors.get("d2t")
        vocab = None if offsets is None else VocabMap(offsets + torch.arange(offsets.numel()), vocab_size)
        return SavedDraft(path, tensors, vocab, exported=True)
    place = find_checkpoint(path)
    checkpoint = store.load(place)
    return SavedDraft(place, checkpoint.draft, vocab_of(checkpoint.vocab), exported=False)


def find_checkpoint(path: Path) -> Path:
    """`path` if it is a checkpoint, the newest one if it is a run directory. Raises UserError if it is neither."""
    if (path / store.MANIFEST).is_file():
        return path
    newest = store.latest(path)
    if newest is None:
        what = "holds no complete checkpoint" if path.is_dir() else "is a file" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}; give a run directory or one of its checkpoints/step-… directories")
    return newest


def vocab_tensors(vocab: VocabMap | None) -> dict[str, Tensor]:
    """A vocabulary map for safetensors; nothing for the target's whole vocabulary."""
    return {} if vocab is None else {"ids": vocab.ids, "size": torch.tensor(vocab.size)}


def vocab_of(tensors: Mapping[str, Tensor]) -> VocabMap | None:
    """The inverse of `vocab_tensors`."""
    return VocabMap(tensors["ids"], int(tensors["size"])) if tensors else None


def load_weights(draft: Draft, tensors: Mapping[str, Tensor], where: str) -> None:
    """Set all of a draft's weights. Raises UserErrors naming what is missing, unexpected or misshapen."""
    _check(draft.state_dict(), tensors, where, "draft")
    draft.load_state_dict(tensors)


@torch.no_grad()
def load_target_weights(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Set the parameters of a target's module, a tied one once, in their own type. Raises UserErrors as above."""
    own = dict(module.named_parameters())
    _check(own, tensors, where, "target")
    for name, parameter in own.items():
        parameter.copy_(tensors[name])


def _check(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str, whose: str) -> None:
    problems = [f"{where} lacks the {whose}'s tensor {name}" for name in own if name not in tensors]
    for name, tensor in tensors.items():
        if name not in own:
            problems.append(f"{where} holds {name}, which this {whose} does not have")
        elif tensor.shape != own[name].shape:
            shapes = json.dumps(list(tensor.shape)), json.dumps(list(own[name].shape))
            problems.append(f"{where}: {name} has shape {shapes[0]}, this {whose}'s is {shapes[1]}")
    if problems:
        raise UserErrors([*problems, "use the [algorithm], [draft] and [target] that these weights were trained with"])
