"""Exporter `hf`: a Hugging Face-style directory of config.json, model.safetensors and specdec.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from specdec_core.algorithm.base import ExportedDraft
from specdec_core.errors import UserError
from specdec_core.export.base import Exporter, Provenance
from specdec_core.export.directory import check_finite, exported_directory, to_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class HFExporter(Exporter):
    """config.json and model.safetensors as the algorithm names them; specdec.json says where they come from."""

    def write(self, exported: ExportedDraft, out: Path, run: Provenance) -> None:
        """Write, read back, compare, and only then put it in its place."""
        check_finite(exported.tensors)
        # Copies, because safetensors refuses tensors that share memory.
        tensors = {n: t.detach().to("cpu", copy=True).contiguous() for n, t in exported.tensors.items()}
        with exported_directory(out, "draft", run) as directory:
            (directory / CONFIG).write_text(to_json(exported.config), encoding="utf-8")
            save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
            for name, text in self.extra_files(exported, run).items():
                (directory / name).write_text(text, encoding="utf-8")
            compare(ExportedDraft(exported.config, tensors), directory)

    def extra_files(self, exported: ExportedDraft, run: Provenance) -> Mapping[str, str]:
        """Text by file name, to stand beside the three files; for a subclass to override. Default: none."""
        return {}


def read_exported(path: Path) -> ExportedDraft:
    """The inverse of `HFExporter.write`. Raises UserError if the directory holds no draft."""
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise UserError(f"{path} is not an exported draft: it has no {name}")
    return ExportedDraft(json.loads((path / CONFIG).read_text(encoding="utf-8")), load_file(path / WEIGHTS))


def compare(exported: ExportedDraft, directory: Path) -> None:
    """Raise RuntimeError unless `directory` holds exactly `exported`."""
    found = read_exported(directory)
    if json.loads(to_json(exported.config)) != found.config:
        raise RuntimeError(f"{directory / CONFIG} does not read back as it was written")
    if found.tensors.keys() != exported.tensors.keys():
        raise RuntimeError(f"{directory / WEIGHTS} holds other names than were written")
    for name, tensor in exported.tensors.items():
        if tensor.dtype != found.tensors[name].dtype or not torch.equal(tensor, found.tensors[name]):
            raise RuntimeError(f"{directory / WEIGHTS}: {name} does not read back as it was written")
