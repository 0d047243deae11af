"""Files of conversations to a table of token sequences, kept on disk.

The table is found again by a fingerprint of all that decides what is in it, so that nothing is tokenised twice and
nothing stale is used. It also holds what could not be used, so that a second run says the same as the first.

Of images it holds where they are and digests of their bytes, no pixels. A table is not used again once a local image
has changed or one that could not be read can be; a newer one then stands beside it.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, Features, List, Value
from datasets.exceptions import DatasetGenerationError
from numpy.typing import NDArray

from specdec_core.data.conversations import (
    MAX_REPORTED,
    Conversation,
    LineError,
    OnError,
    Problem,
    open_file,
    parse_conversation,
    raise_problems,
    read_lines,
)
from specdec_core.data.media import Medium
from specdec_core.data.media_reader import MediaReader
from specdec_core.data.sources import is_remote, local_path, state_of
from specdec_core.data.template import ChatTemplate, Rendering
from specdec_core.errors import UserError

FORMAT_VERSION = 2
NO_TOKENS = {"ids": np.zeros(0, dtype=np.int32), "loss_mask": np.zeros(0, dtype=np.bool_)}
NO_MEDIA: dict[str, list[Any]] = {"media": [], "digests": []}
ROWS_PER_WRITE = 100
"""Lines may hold images as data URIs, of some megabytes each."""
CHUNK = 1 << 20

PLACE = {"file": Value("int32"), "line": Value("int64")}
PROBLEM = {"reason": Value("string"), "message": Value("string")}
LINE_FEATURES = Features({**PLACE, "raw": Value("large_binary"), **PROBLEM})
MEDIUM = {"kind": Value("string"), "sources": List(Value("large_string")), "fps": Value("float64")}
FILE_STATE = {"path": Value("large_string"), "size": Value("int64"), "mtime": Value("int64")}
SEQUENCE_FEATURES = Features(
    {
        **PLACE,
        "ids": List(Value("int32")),
        "loss_mask": List(Value("bool")),
        "media": List(MEDIUM),
        "digests": List(List(Value("string"))),
        "truncated": Value("bool"),
        "read": List(FILE_STATE),
        "remote": Value("bool"),
        **PROBLEM,
    }
)


def tokenised(
    files: Sequence[Path],
    template: ChatTemplate,
    *,
    max_length: int,
    media: MediaReader | None = None,
    on_error: OnError = "error",
    num_proc: int = 1,
    cache_dir: Path | None = None,
) -> tuple[Dataset, str]:
    """The table of `files` and its fingerprint, from the cache if it is there.

    One row per sequence, in the order of the files, with the columns

        file, line      where the conversation stands: an index into `files`, a 1-based number
        ids, loss_mask  at most `max_length` tokens, cut at the right; empty if no supervised token was left
        media           the images and videos in the tokens; see `media_of`
        digests         of the bytes of each frame of each of them
        truncated       whether it was cut
        read            the local images that the line names, each with its state (`state_of`) before it was read
        remote          whether the line names a URL
        reason, message what is wrong with the line, if it is not usable; null otherwise

    Raises UserErrors with the first bad lines unless `on_error` is "skip", UserError if a file cannot be read, if
    all are empty, or if the cache cannot be written.
    """
    fingerprint = _fingerprint(files, template, max_length, media)
    root = cache_root(cache_dir)
    # A line's images are those in its file's directory, and what is said of a missing one names that.
    name = fingerprint if media is None else _digest([fingerprint, *(str(file.parent.absolute()) for file in files)])
    paths = (root / (f"{name}-{generation}" if generation else name) for generation in count())
    made: list[Path] = []
    while (path := next(paths)).exists():
        made.append(path)
    tables = (Dataset.load_from_disk(str(older)) for older in reversed(made))
    table = next((table for table in tables if media is None or not _outdated(table, files, on_error)), None)
    if table is None:
        with _writing(root), tempfile.TemporaryDirectory(dir=root, prefix="building-") as scratch:
            _build(files, _SequenceMaker(template, media, files, max_length), on_error, num_proc, Path(scratch))
            _publish(Path(scratch) / "table", path)
        table = Dataset.load_from_disk(str(path))
    if on_error == "error":
        raise_problems(problems(table, files))
    return table, fingerprint if media is None else _with_digests(fingerprint, table)


def cache_root(cache_dir: Path | None = None) -> Path:
    """Where tables and downloaded images are kept: under `data.cache_dir`, or in the HF datasets cache."""
    return (cache_dir or Path(datasets.config.HF_DATASETS_CACHE)) / "specdec"


def media_of(row: Mapping[str, Any]) -> list[Medium]:
    """The media of a row of the table."""
    return [Medium(medium["kind"], tuple(medium["sources"]), medium["fps"]) for medium in row["media"]]


def problems(table: Dataset, files: Sequence[Path]) -> list[Problem]:
    """The lines of a table that could not be used."""
    columns = table.select_columns(["file", "line", "reason", "message"]).with_format("arrow")[:]
    bad = columns.filter(columns["reason"].is_valid()).to_pylist()
    return [Problem(str(files[row["file"]]), row["line"], row["reason"], row["message"]) for row in bad]


def without_problems(table: Dataset) -> Dataset:
    """The rows of a table that were made of usable lines."""
    reasons = table.select_columns(["reason"]).with_format("arrow")[:]["reason"]
    return table.select(np.flatnonzero(np.asarray(reasons.is_null())))


def list_lengths(table: Dataset, column: str) -> NDArray[np.int64]:
    """How long the list in a column is: the tokens of each row, say."""
    lists = table.select_columns([column]).with_format("arrow")[:][column]
    return np.concatenate([np.zeros(0, dtype=np.int64), *(chunk.value_lengths() for chunk in lists.chunks)])


def supervised_ids(table: Dataset) -> Iterator[NDArray[np.int32]]:
    """All supervised tokens, in chunks."""
    for rows in table.select_columns(["ids", "loss_mask"]).with_format("arrow").iter(batch_size=1000):
        yield flat(rows["ids"])[flat(rows["loss_mask"])]


def flat(column: Any) -> NDArray[Any]:
    """The values of an arrow column of lists, one after another."""
    values: NDArray[Any] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values


def _build(files: Sequence[Path], maker: _SequenceMaker, on_error: OnError, num_proc: int, scratch: Path) -> None:
    if next(read_lines(files), None) is None:
        raise UserError(f"no conversation in {', '.join(map(str, files))}; every line is blank")
    lines = Dataset.from_generator(
        _line_rows,
        features=LINE_FEATURES,
        cache_dir=str(scratch),
        writer_batch_size=ROWS_PER_WRITE,
        gen_kwargs={"files": tuple(files), "stop_after": MAX_REPORTED if on_error == "error" else None},
    )
    if on_error == "error":
        raise_problems(problems(lines, files))
    table = lines.map(
        maker,
        batched=True,
        batch_size=64,
        writer_batch_size=ROWS_PER_WRITE,
        num_proc=min(num_proc, max(1, len(lines))) if num_proc > 1 else None,
        remove_columns=["raw"],
        features=SEQUENCE_FEATURES,
        desc="Tokenising conversations",
        cache_file_name=str(scratch / "sequences.arrow"),
        new_fingerprint="sequences",
    )
    if on_error == "error" and _bad_and_remote(table):
        # Nothing is kept that says of a server what may be over in a minute.
        raise_problems(problems(table, files))
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

    def __init__(
        self, template: ChatTemplate, media: MediaReader | None, files: Sequence[Path], max_length: int
    ) -> None:
        self.template = template
        self.media = media
        self.directories = [file.parent for file in files]
        self.max_length = max_length

    def __call__(self, lines: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows: list[dict[str, Any]] = []
        renderings: list[Rendering] = []
        for file, line, raw, reason, message in zip(*(lines[name] for name in LINE_FEATURES), strict=True):
            row = {"file": file, "line": line, **NO_TOKENS, **NO_MEDIA, "truncated": False, "read": [], "remote": False}
            row |= {"reason": reason, "message": message}
            made: list[tuple[Rendering, dict[str, list[Any]]]] = []
            if reason is None:
                try:
                    made = self._made(parse_conversation(raw), self.directories[file], row)
                except LineError as error:
                    row |= {"reason": error.reason, "message": error.message}
            renderings += [rendering for rendering, _ in made]
            rows += [{**row, **media} for _, media in made] or [row]
        usable = (row for row in rows if row["reason"] is None)
        for row, encoded in zip(usable, self.template.encode(renderings), strict=True):
            kept = encoded.cut(self.max_length)
            row["truncated"] = len(kept.ids) < len(encoded.ids)
            number = len(kept.places) if kept.mask.any() else 0
            row |= {name: row[name][:number] for name in NO_MEDIA}
            if kept.mask.any():
                row["ids"], row["loss_mask"] = kept.ids, kept.mask
        return {name: [row[name] for row in rows] for name in SEQUENCE_FEATURES}

    def _made(
        self, conversation: Conversation, directory: Path, row: dict[str, Any]
    ) -> list[tuple[Rendering, dict[str, list[Any]]]]:
        """The texts of a conversation, each with the columns of its media; `row` is told what is read."""
        renderings = self.template.render(conversation)
        media = conversation.media
        if self.media is None or not media:
            return [(rendering, NO_MEDIA) for rendering in renderings]
        sources = dict.fromkeys(source for medium in media for source in medium.sources)
        row["remote"] = any(map(is_remote, sources))
        row["read"] = [_file_state(source, directory) for source in sources if local_path(source, directory)]
        seen = self.media.look(media, directory)
        made: list[tuple[Rendering, dict[str, list[Any]]]] = []
        for rendering in renderings:
            columns: dict[str, list[Any]] = {
                "media": [asdict(media[index]) for index in rendering.media],
                "digests": [seen[index].digests for index in rendering.media],
            }
            made.append((rendering.replaced([seen[index].replacement for index in rendering.media]), columns))
        return made


def _file_state(source: str, directory: Path) -> dict[str, Any]:
    path = local_path(source, directory)
    assert path is not None
    size, mtime = state_of(path)
    return {"path": source, "size": size, "mtime": mtime}


def _outdated(table: Dataset, files: Sequence[Path], on_error: OnError) -> bool:
    """Whether reading the images of a table anew could give another one."""
    if on_error == "error" and _bad_and_remote(table):
        return True
    for rows in table.select_columns(["file", "read"]).iter(batch_size=1000):
        for file, states in zip(rows["file"], rows["read"], strict=True):
            if any(_file_state(state["path"], files[file].parent) != state for state in states):
                return True
    return False


def _bad_and_remote(table: Dataset) -> bool:
    columns = table.select_columns(["reason", "remote"]).with_format("arrow")[:]
    return bool(np.any(np.asarray(columns["reason"].is_valid()) & np.asarray(columns["remote"])))


def _fingerprint(files: Sequence[Path], template: ChatTemplate, max_length: int, media: MediaReader | None) -> str:
    parts = [FORMAT_VERSION, datasets.__version__, template.fingerprint(), max_length, *map(_file_hash, files)]
    if media is not None:
        parts.append(media.fingerprint)
    return _digest(parts)


def _digest(parts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _with_digests(fingerprint: str, table: Dataset) -> str:
    """Another fingerprint for other images, wherever their table lies."""
    digest = hashlib.sha256(fingerprint.encode())
    for rows in table.select_columns(["digests"]).iter(batch_size=1000):
        digest.update("".join(json.dumps(digests) for digests in rows["digests"]).encode())
    return digest.hexdigest()[:32]


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
