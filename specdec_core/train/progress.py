"""What a person sees while a run trains: a live bar on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0
ACCURACY = "accuracy/"
ACCEPTANCE_LENGTH = "acceptance_length"


def summary(metrics: Mapping[str, float]) -> str:
    """`loss 2.113  accuracy 0.41 0.35 0.30  τ 1.72 (simulated)  5.1k tok/s`."""
    parts = [f"loss {metrics['loss']:.3f}"] if "loss" in metrics else []
    positions = sorted((name for name in metrics if name.startswith(ACCURACY)), key=_position)
    if positions:
        parts.append("accuracy " + " ".join(f"{metrics[name]:.2f}" for name in positions))
    if ACCEPTANCE_LENGTH in metrics:
        parts.append(f"τ {metrics[ACCEPTANCE_LENGTH]:.2f} (simulated)")
    if "validation/loss" in metrics:
        parts.append(f"validation {metrics['validation/loss']:.3f}")
    if "tokens_per_second" in metrics:
        parts.append(f"{metrics['tokens_per_second']:,.0f} tok/s")
    return "  ".join(parts)


def _position(name: str) -> tuple[int, str]:
    place = name.removeprefix(ACCURACY)
    return (int(place), "") if place.isdecimal() else (0, place)


def say(console: Console, sentence: str) -> None:
    """Print a sentence as it is: not coloured, not cut at the terminal's width."""
    console.print(sentence, highlight=False, markup=False, soft_wrap=True)


class ProgressView:
    """Shows steps done of `total`, the latest metrics, and the time left."""

    def __init__(self, console: Console, start: int, total: int) -> None:
        self.console, self.start, self.total = console, start, total
        self._began = self._last_line = time.monotonic()
        self._live = console.is_terminal
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[summary]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=False,
            disable=not self._live,
        )
        self._task = self._bar.add_task("train", total=total, completed=start, summary="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, sentence: str) -> None:
        """A line of its own above the bar."""
        say(self.console, sentence)

    def stopping(self, signal: str) -> None:
        """Answer a request to stop."""
        self.say(f"{signal}: the step will end and a checkpoint be saved; once more stops at once")

    def step_done(self, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """Move the bar; `metrics` are given for logged steps."""
        if self._live:
            self._bar.update(self._task, completed=step)
            if metrics:
                self._bar.update(self._task, summary=summary(metrics))
            return
        now = time.monotonic()
        due = now - self._last_line >= SECONDS_BETWEEN_LINES or step in (self.start + 1, self.total)
        if metrics and due:
            self._last_line = now
            left = (now - self._began) / (step - self.start) * (self.total - step)
            self.say(f"step {step}/{self.total}  {summary(metrics)}  {_duration(left)} left")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
