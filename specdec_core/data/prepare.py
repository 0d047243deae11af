"""The data room's front door: a [data] section and a tokenizer in, packed rows and a report out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from specdec_core.config.run import DataSection
from specdec_core.data.dataset import cache_root, list_lengths, problems, supervised_ids, tokenised, without_problems
from specdec_core.data.images import ImageReader
from specdec_core.data.media import MediaProcessor
from specdec_core.data.media_reader import MediaReader
from specdec_core.data.packing import Rows, pack
from specdec_core.data.report import DataReport
from specdec_core.data.template import ChatTemplate
from specdec_core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PreparedData:
    """A split, ready for a `BatchLoader`, and what became of its files."""

    rows: Rows
    report: DataReport


def prepare_dataset(
    section: DataSection,
    files: Sequence[Path],
    tokenizer: PreTrainedTokenizerBase,
    stop_token_ids: Sequence[int],
    *,
    split: str = "train",
    media: MediaProcessor | None = None,
) -> PreparedData:
    """Read, check, render, tokenise and pack `files`; `split` is the key of [data] that names them.

    `media` is how the target reads images and videos; None: it reads text only. `data.max_tokens` is a budget of
    training and cuts the split "train" only. Tokenised data is cached. Raises UserErrors with the first bad lines
    unless `data.on_error` is "skip", and UserError if a file cannot be read, the tokenizer or template cannot be used,
    or nothing is left to learn from.
    """
    if not files:
        raise UserError(f"data.{split} names no file; give at least one JSONL file of conversations")
    reader = None if media is None else media_reader(section, media)
    template = ChatTemplate(tokenizer, stop_token_ids, section.chat_template, media.markers if media else {})
    table, fingerprint = tokenised(
        files,
        template,
        max_length=section.max_length,
        media=reader,
        on_error=section.on_error,
        num_proc=section.num_proc,
        cache_dir=section.cache_dir,
    )
    skipped = Counter(problem.reason for problem in problems(table, files))
    max_tokens = section.max_tokens if split == "train" else None
    taken, left_out = _first_tokens(without_problems(table), max_tokens)
    sizes = list_lengths(taken, "ids")
    used = taken.select(np.flatnonzero(sizes))
    sizes = sizes[sizes > 0]
    if not len(used):
        raise UserError(_nothing_left(split, files, skipped, len(taken)))
    documents = pack(sizes.tolist(), section.max_length) if section.packing else [(i,) for i in range(len(used))]
    identity = f"{fingerprint}/{max_tokens}/{section.packing}"
    rows = Rows(used, documents, hashlib.sha256(identity.encode()).hexdigest()[:32], reader, files)
    supervised = stops = 0
    for ids in supervised_ids(used):
        supervised += len(ids)
        stops += int(np.isin(ids, stop_token_ids).sum())
    report = DataReport(
        conversations=int(_new_conversation(used).sum()),
        sequences=len(used),
        tokens=int(sizes.sum()),
        supervised=supervised,
        stop_tokens=stops,
        truncated=sum(taken["truncated"]),
        dropped=len(taken) - len(used),
        left_out=left_out,
        skipped=skipped,
        rows=len(documents),
        max_length=section.max_length,
        media=int(list_lengths(used, "media").sum()),
    )
    return PreparedData(rows, report)


def media_reader(section: DataSection, media: MediaProcessor) -> MediaReader:
    """A reader by the policy of [data]; what it downloads is kept beside the tokenised data."""
    downloads = cache_root(section.cache_dir) / "downloads"
    return MediaReader(media, ImageReader(downloads, section.images, section.max_image_pixels))


def _first_tokens(table: Dataset, max_tokens: int | None) -> tuple[Dataset, int]:
    """The sequences of the first conversations that fit into `max_tokens`, and how many conversations do not."""
    if max_tokens is None or not len(table):
        return table, 0
    conversation = np.cumsum(_new_conversation(table)) - 1
    totals = np.bincount(conversation, weights=list_lengths(table, "ids"))
    fitting = int((np.cumsum(totals) <= max_tokens).sum())
    if not fitting:
        raise UserError(
            f"data.max_tokens is {max_tokens}, but the first conversation of data.train alone has {int(totals[0])}"
        )
    return table.select(np.flatnonzero(conversation < fitting)), len(totals) - fitting


def _new_conversation(table: Dataset) -> NDArray[np.bool_]:
    """Whether each row begins another conversation than the row before it."""
    columns = table.select_columns(["file", "line"]).with_format("arrow")[:]
    places = np.stack([columns["file"].to_numpy(), columns["line"].to_numpy()])
    changed = (places[:, 1:] != places[:, :-1]).any(axis=0)
    return np.concatenate([np.ones(min(1, len(table)), dtype=np.bool_), changed])


def _nothing_left(split: str, files: Sequence[Path], skipped: Counter[str], dropped: int) -> str:
    names = ", ".join(map(str, files))
    why = [f"{count} lines skipped ({reason})" for reason, count in skipped.items()]
    if dropped:
        why.append(f"{dropped} sequences with no answer within data.max_length")
    return f"data.{split} holds nothing to learn from ({names}): {'; '.join(why)}"
