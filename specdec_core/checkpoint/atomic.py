"""Directories that are complete or absent."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

TEMPORARY = ".tmp"


@contextmanager
def atomic_directory(final: Path) -> Iterator[Path]:
    """Yield a hidden sibling to write into; when the block ends well it is synced and renamed to `final`.

    A directory that stands at `final` is replaced. If the block fails, what it wrote is removed.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}{TEMPORARY}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        for path in temporary.iterdir():
            sync(path)
        sync(temporary)
        remove_directory(final)
        temporary.rename(final)
        sync(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_directory(path: Path) -> None:
    """Remove a directory, if it is there, so that no one ever sees half of it."""
    if path.exists():
        hidden = path.with_name(f".{path.name}.old{TEMPORARY}")
        shutil.rmtree(hidden, ignore_errors=True)
        path.rename(hidden)
        shutil.rmtree(hidden)


def remove_leftovers(parent: Path) -> None:
    """Remove what a killed process left in `parent`."""
    for path in parent.glob(f".*{TEMPORARY}"):
        shutil.rmtree(path, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a file aside, sync it and rename it."""
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    try:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_disk_full(error: BaseException) -> bool:
    """Whether an error of Python's or of safetensors' says that the disk or the quota is full."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, SafetensorError) and any(
        f"os error {code})" in str(error) for code in (errno.ENOSPC, errno.EDQUOT)
    )


def sync(path: Path) -> None:
    """Have a file's or a directory's content on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
