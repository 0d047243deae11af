"""What the data room hands on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

PADDING_DOCUMENT = -1


@dataclass(frozen=True)
class Batch:
    """Packed rows of tokens. B rows, S slots.

    ids            [B, S] int64   tokens; padding is any valid id, told apart by `document_ids`
    positions      [B, S] int64   position within the document, from 0; [A, B, S] where the target has
                               A axes of positions (M-RoPE)
    loss_mask      [B, S] bool    True where the token was written by the assistant and is to be learned
    document_ids   [B, S] int64   which conversation of the row, from 0; -1 is padding (always at the end)
    row_keys       one stable key per row, by which a feature cache knows it
    extras         further model inputs by the model's own keyword (pixel values and the like); along dim 0 the media
                   of one document after another, row by row
    """

    ids: Tensor
    positions: Tensor
    loss_mask: Tensor
    document_ids: Tensor
    row_keys: tuple[str, ...] = ()
    extras: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: str) -> Batch:
        """The same batch on another device."""
        return replace(
            self,
            ids=self.ids.to(device),
            positions=self.positions.to(device),
            loss_mask=self.loss_mask.to(device),
            document_ids=self.document_ids.to(device),
            extras={name: tensor.to(device) for name, tensor in self.extras.items()},
        )

    def same_document(self, distance: int) -> Tensor:
        """[B, S] bool: slot t and slot t + distance lie in one conversation."""
        following = ahead(self.document_ids, distance, PADDING_DOCUMENT)
        return (following == self.document_ids) & (self.document_ids != PADDING_DOCUMENT)

    @property
    def num_tokens(self) -> int:
        """Slots that are not padding."""
        return int((self.document_ids != PADDING_DOCUMENT).sum())


def concatenated(inputs: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Several texts' further model inputs as one's: each input one after another along dim 0."""
    gathered: defaultdict[str, list[Tensor]] = defaultdict(list)
    for of_text in inputs:
        for name, tensor in of_text.items():
            gathered[name].append(tensor)
    return {name: torch.cat(tensors) for name, tensors in gathered.items()}


def ahead(x: Tensor, distance: int, fill: float | bool | int) -> Tensor:
    """x[:, t + distance] at slot t of [B, S, ...], `fill` past the row's end."""
    shifted = torch.full_like(x, fill)
    if distance < x.shape[1]:
        shifted[:, : x.shape[1] - distance] = x[:, distance:]
    return shifted
