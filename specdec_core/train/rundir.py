"""The run directory: who may write into it, what it says of the run, and whether a run may go on in it."""

from __future__ import annotations

import fcntl
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from specdec_core.checkpoint import store
from specdec_core.checkpoint.atomic import is_disk_full, write_text
from specdec_core.checkpoint.versions import essential_differences
from specdec_core.config.load import read_toml
from specdec_core.config.show import to_toml
from specdec_core.errors import UserError, UserErrors
from specdec_core.export.target import TARGET
from specdec_core.registry.lock import FILE_NAME as LOCK
from specdec_core.registry.lock import compare_lock, read_lock
from specdec_core.registry.resolve import ResolvedRun

log = logging.getLogger(__name__)

CONFIG, METRICS, DRAFT = "config.toml", "metrics.jsonl", "draft"

# What a run that goes on may change: it decides what is shown, kept and measured, not what is learned.
FREE = (
    "train.output_dir",
    "train.run_name",
    "train.log_every",
    "train.save_every",
    "train.validate_every",
    "train.keep_last",
    "data.num_proc",
    "data.cache_dir",
    "data.validation",
    "engine.device",
    "engine.threads",
    "eval",
    "export",
    "loggers",
)


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold a run directory, made if need be, for this process.

    Raises UserError if another one holds it, or if it cannot be made or written to.
    """
    with _lock_file(directory) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"{directory}: another process is training here; wait for it or choose another train.output_dir"
            ) from error
        yield


def _lock_file(directory: Path) -> TextIO:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return (directory / ".lock").open("w")
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UserError(
            f"train.output_dir: {directory} cannot be made or written to ({error.strerror}); choose another one"
        ) from error


def describe(directory: Path, resolved: ResolvedRun) -> None:
    """Write the plugin lock and the config with all defaults.

    The config comes last: it marks the directory as used, and a run that goes on there needs the lock.
    """
    write_text(directory / LOCK, resolved.lock.to_json())
    write_text(directory / CONFIG, to_toml(resolved.table))


def refuse_if_used(directory: Path) -> None:
    """Raises UserError if a run was begun here."""
    if (directory / CONFIG).exists():
        raise UserError(
            f"{directory} already holds a run; add --resume to continue it, or choose another train.output_dir"
        )


def check_resumable(directory: Path, resolved: ResolvedRun) -> None:
    """Raises UserErrors if the run that was begun here is not the one of `resolved`."""
    if not (directory / CONFIG).exists():
        return
    changed = differences(read_toml(directory / CONFIG), resolved.table)
    if changed:
        raise UserErrors(
            [
                f"{directory}: {key} was {_shown(old)} when the run began and is now {_shown(new)}"
                for key, (old, new) in changed.items()
            ]
            + [
                "a resumed run has to repeat what it would have done: restore these keys "
                f"(see {directory / CONFIG}), or begin a new run whose draft.init_from is {directory}"
            ]
        )
    before, now = read_lock(directory / LOCK), resolved.lock
    essential = essential_differences(before, now)
    if essential:
        raise UserErrors(
            [f"{directory}: {sentence}" for sentence in essential]
            + [f"install the versions of {directory / LOCK}, or begin a new run whose draft.init_from is {directory}"]
        )
    for sentence in compare_lock(before, now):
        log.warning("%s: %s", directory, sentence)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The dotted keys that differ and matter, with both values; a key that is not set is None."""
    before, after = _flat(old), _flat(new)
    pairs = {key: (before.get(key), after.get(key)) for key in dict.fromkeys([*before, *after])}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1] and not _is_free(key)}


def completed_step(directory: Path) -> int | None:
    """The last step, if the run that stands here is complete, its draft and a target that it trained exported."""
    newest = store.latest(directory, warn=lambda _: None)
    if newest is None or not (directory / DRAFT).is_dir():
        return None
    if (newest / store.TARGET).exists() and not (directory / TARGET).is_dir():
        return None
    state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
    return state["step"] if state["step"] == state["trainer"]["total_steps"] else None


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat


def _shown(value: Any) -> str:
    return "not set" if value is None else json.dumps(value)
