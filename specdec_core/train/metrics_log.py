"""`metrics.jsonl`: one line for every logged step, each step once however often the run was resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from specdec_core.algorithm.base import Metric
from specdec_core.checkpoint.atomic import sync, write_text


@dataclass
class Means:
    """Sums and counts by metric name, in float64, since the last line was written."""

    sums: dict[str, list[float]] = field(default_factory=dict)

    def add(self, metrics: Mapping[str, Metric]) -> None:
        """Add one step's metrics."""
        if not metrics:
            return
        # One transfer from the device for all of them.
        pairs = torch.stack([torch.stack([m.sum.double(), m.count.double()]) for m in metrics.values()]).tolist()
        for name, (sum_, count) in zip(metrics, pairs, strict=True):
            total = self.sums.setdefault(name, [0.0, 0.0])
            total[0] += sum_
            total[1] += count

    def means(self) -> dict[str, float]:
        """The mean of each metric that counted anything."""
        return {name: sum_ / count for name, (sum_, count) in self.sums.items() if count}


class MetricsLog:
    """Appends to `metrics.jsonl`, a whole line at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> None:
        """Cut the lines after `step`, and a last line that a killed process left unfinished."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            try:
                if not line.endswith("\n") or json.loads(line)["step"] > step:
                    break
            except (ValueError, KeyError, TypeError):
                break
            kept.append(line)
        write_text(self.path, "".join(kept))

    def write(self, line: Mapping[str, float]) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def sync(self) -> None:
        """Have the lines on disk before the checkpoint that follows them."""
        if self.path.exists():
            sync(self.path)
