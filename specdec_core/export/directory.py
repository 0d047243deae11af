"""A directory that is exported whole or not at all, with its provenance."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specdec_core.checkpoint.atomic import atomic_directory, is_disk_full
from specdec_core.errors import UserError
from specdec_core.export.base import Provenance

PROVENANCE = "specdec.json"


@contextmanager
def exported_directory(out: Path, what: str, run: Provenance) -> Iterator[Path]:
    """Yield a directory to write the `what` ("draft") into; it stands at `out` when the block has ended well.

    An earlier export there is replaced. Raises UserError if `out` holds something else, cannot be written, or if the
    disk is full.
    """
    if out.exists() and not (out / PROVENANCE).exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not a {what} exported by specdec; choose another directory")
    try:
        with atomic_directory(out) as directory:
            (directory / PROVENANCE).write_text(to_json(run.to_json()), encoding="utf-8")
            yield directory
    except Exception as error:
        if is_disk_full(error):
            raise UserError(f"no space left on the disk of {out}: the {what} was not exported there") from error
        if isinstance(error, OSError):
            raise UserError(f"{out} cannot be written ({error.strerror}); choose another directory") from error
        raise


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises UserError, naming the tensors, if one holds a value that is not finite."""
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise UserError(
            f"not exported: {', '.join(bad)} {'holds' if len(bad) == 1 else 'hold'} values that are not finite; "
            "export an earlier checkpoint, or train again with a lower train.lr"
        )


def to_json(value: Mapping[str, Any]) -> str:
    """As the exported files hold it."""
    return json.dumps(value, indent=2) + "\n"
