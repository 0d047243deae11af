"""Which positions the draft rotates by."""

from __future__ import annotations

import torch
from torch import Tensor

from specdec_core.algorithm.proposal import Verified
from specdec_core.data.batch import Batch
from specdec_eagle3.config import Eagle3Config


def in_training(batch: Batch, options: Eagle3Config) -> Tensor:
    """[B, S], or [A, B, S] on the target's axes, of a batch's slots at step 0; step k is k further on every axis."""
    if options.positions == "sequential":
        starts = document_starts(batch.document_ids)
        return (torch.arange(starts.numel(), device=starts.device) - starts).view(batch.document_ids.shape)
    return batch.positions


def in_decoding(verified: Verified, options: Eagle3Config) -> Tensor:
    """[m], or [A, m] on the target's axes, of the verified slots; each guess is one further on every axis."""
    if options.positions == "sequential":
        return torch.arange(verified.start, verified.start + verified.ids.numel() - 1, device=verified.ids.device)
    return verified.positions


def document_starts(documents: Tensor) -> Tensor:
    """[N] the flattened slot at which each slot's document begins; [B, S] document ids."""
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    flat = begins.flatten()
    return torch.where(flat, torch.arange(flat.numel(), device=flat.device), 0).cummax(0).values
