"""Files of conversations to a table of token sequences, kept on disk.

The table is found again by a fingerprint of all that decides what is in it, so that nothing is tokenised twice and
nothing stale is used. It also holds what could not be used, so that a second run says the same as the first.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, Features, List, Value
from datasets.exceptions import DatasetGenerationError
from numpy.typing import NDArray

from specdec_core.data.conversations import (
    MAX_REPORTED,
    LineError,
    OnError,
    Problem,
    open_file,
    parse_conversation,
    raise_problems,
    read_lines,
)
from specdec_core.data.template import ChatTemplate, Rendering
from specdec_core.errors import UserError

FORMAT_VERSION = 1
NO_TOKENS = {"ids": np.zeros(0, dtype=np.int32), "loss_mask": np.zeros(0, dtype=np.bool_)}
CHUNK = 1 << 20

PLACE = {"file": Value("int32"), "line": Value("int64")}
PROBLEM = {"reason": Value("string"), "message": Value("string")}
LINE_FEATURES = Features({**PLACE, "raw": Value("binary"), **PROBLEM})
SEQUENCE_FEATURES = Features(
    {**PLACE, "ids": List(Value("int32")), "loss_mask": List(Value("bool")), "truncated": Value("bool"), **PROBLEM}
)


def tokenised(
    files: Sequence[Path],
    template: ChatTemplate,
    *,
    max_length: int,
    on_error: OnError = "error",
    num_proc: int = 1,
    cache_dir: Path | None = None,
) -> tuple[Dataset, str]:
    """The table of `files` and its fingerprint, from the cache if it is there.

    One row per sequence, in the order of the files, with the columns

        file, line      where the conversation stands: an index into `files`, a 1-based number
        ids, loss_mask  at most `max_length` tokens, cut at the right; empty if no supervised token was left
        truncated       whether it was cut
        reason, message what is wrong with the line, if it is not usable; null otherwise

    Raises UserErrors with the first bad lines unless `on_error` is "skip", UserError if a file cannot be read, if
    all are empty, or if the cache cannot be written.
    """
    fingerprint = _fingerprint(files, template, max_length)
    root = (cache_dir or Path(datasets.config.HF_DATASETS_CACHE)) / "specdec"
    path = root / fingerprint
    if not path.exists():
        with _writing(root), tempfile.TemporaryDirectory(dir=root, prefix="building-") as scratch:
            _build(files, template, max_length, on_error, num_proc, Path(scratch))
            _publish(Path(scratch) / "table", path)
    table = Dataset.load_from_disk(str(path))
    if on_error == "error":
        raise_problems(problems(table, files))
    return table, fingerprint


def problems(table: Dataset, files: Sequence[Path]) -> list[Problem]:
    """The lines of a table that could not be used."""
    columns = table.select_columns(["file", "line", "reason", "message"]).with_format("arrow")[:]
    bad = columns.filter(columns["reason"].is_valid()).to_pylist()
    return [Problem(str(files[row["file"]]), row["line"], row["reason"], row["message"]) for row in bad]


def without_problems(table: Dataset) -> Dataset:
    """The rows of a table that were made of usable lines."""
    reasons = table.select_columns(["reason"]).with_format("arrow")[:]["reason"]
    return table.select(np.flatnonzero(np.asarray(reasons.is_null())))


def lengths(table: Dataset) -> NDArray[np.int64]:
    """Tokens of each row."""
    ids = table.select_columns(["ids"]).with_format("arrow")[:]["ids"]
    return np.concatenate([np.zeros(0, dtype=np.int64), *(chunk.value_lengths() for chunk in ids.chunks)])


def supervised_ids(table: Dataset) -> Iterator[NDArray[np.int32]]:
    """All supervised tokens, in chunks."""
    for rows in table.select_columns(["ids", "loss_mask"]).with_format("arrow").iter(batch_size=1000):
        yield flat(rows["ids"])[flat(rows["loss_mask"])]


def flat(column: Any) -> NDArray[Any]:
    """The values of an arrow column of lists, one after another."""
    values: NDArray[Any] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values


def _build(
    files: Sequence[Path], template: ChatTemplate, max_length: int, on_error: OnError, num_proc: int, scratch: Path
) -> None:
    if next(read_lines(files), None) is None:
        raise UserError(f"no conversation in {', '.join(map(str, files))}; every line is blank")
    lines = Dataset.from_generator(
        _line_rows,
        features=LINE_FEATURES,
        cache_dir=str(scratch),
        gen_kwargs={"files": tuple(files), "stop_after": MAX_REPORTED if on_error == "error" else None},
    )
    if on_error == "error":
        raise_problems(problems(lines, files))
    table = lines.map(
        _SequenceMaker(template, max_length),
        batched=True,
        batch_size=64,
        num_proc=min(num_proc, max(1, len(lines))) if num_proc > 1 else None,
        remove_columns=["raw"],
        features=SEQUENCE_FEATURES,
        desc="Tokenising conversations",
        cache_file_name=str(scratch / "sequences.arrow"),
        new_fingerprint="sequences",
    )
    table.save_to_disk(str(scratch / "table"))


def _line_rows(files: Sequence[Path], stop_after: int | None) -> Iterator[dict[str, Any]]:
    bad = 0
    index = {str(file): number for number, file in enumerate(files)}
    for line in read_lines(files):
        problem = line.parsed if isinstance(line.parsed, Problem) else None
        yield {
            "file": index[line.file],
            "line": line.number,
            "raw": b"" if problem else line.raw,
            "reason": problem and problem.reason,
            "message": problem and problem.message,
        }
        bad += problem is not None
        if bad == stop_after:
            return


class _SequenceMaker:
    """Lines in, sequences out; called in worker processes."""

    def __init__(self, template: ChatTemplate, max_length: int) -> None:
        self.template = template
        self.max_length = max_length

    def __call__(self, lines: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows: list[dict[str, Any]] = []
        renderings: list[Rendering] = []
        for file, line, raw, reason, message in zip(*(lines[name] for name in LINE_FEATURES), strict=True):
            empty = {"file": file, "line": line, **NO_TOKENS, "truncated": False}
            try:
                if reason is not None:
                    raise LineError(reason, message)
                made = self.template.render(parse_conversation(raw))
            except LineError as error:
                rows.append({**empty, "reason": error.reason, "message": error.message})
            else:
                renderings += made
                rows += [{**empty, "reason": None, "message": None} for _ in made]
        usable = (row for row in rows if row["reason"] is None)
        for row, encoded in zip(usable, self.template.encode(renderings), strict=True):
            mask = encoded.mask[: self.max_length]
            row["truncated"] = len(encoded.ids) > self.max_length
            if mask.any():
                row["ids"], row["loss_mask"] = encoded.ids[: self.max_length], mask
        return {name: [row[name] for row in rows] for name in SEQUENCE_FEATURES}


def _fingerprint(files: Sequence[Path], template: ChatTemplate, max_length: int) -> str:
    parts = [FORMAT_VERSION, datasets.__version__, template.fingerprint(), max_length, *map(_file_hash, files)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _file_hash(file: Path) -> str:
    digest = hashlib.sha256()
    with open_file(file) as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _publish(made: Path, path: Path) -> None:
    """Move a finished table to its place; another process may have been quicker, with the same table."""
    try:
        made.rename(path)
    except OSError:
        if not path.exists():
            raise


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    """Make the cache's directory; a disk that is full or not ours to write to is the user's to mend."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, DatasetGenerationError) as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        if isinstance(cause, UserError):
            raise cause from error
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"cannot write tokenised data to {root}: {cause.strerror or cause}; make room, or set data.cache_dir"
        ) from error
