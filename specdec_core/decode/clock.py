"""Time on the device that does the work."""

from __future__ import annotations

import time
from typing import Any

import torch


class Clock:
    """Marks moments without waiting for the device: marks on a GPU lie in the queue of its work."""

    def __init__(self, device: str) -> None:
        self.cuda = torch.device(device).type == "cuda"

    def mark(self) -> Any:
        """Now, or on a GPU the moment when the work queued so far will have ended."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds from one mark to another; on a GPU waits until the later one is reached."""
        if not self.cuda:
            return float(end - start)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000
