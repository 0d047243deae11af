"""Conversations with images, from files to batches."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tiny_vision import (
    IMAGE,
    STOP,
    PatchProcessor,
    asking,
    encoded,
    image_part,
    picture,
    text_part,
    vision_tokenizer,
    write_lines,
)

from specdec_core.config.run import DataSection
from specdec_core.data.batch import PADDING_DOCUMENT
from specdec_core.data.loader import BatchLoader, collate
from specdec_core.data.media import LoadedMedium, MediaProcessor
from specdec_core.data.packing import Row, Rows
from specdec_core.data.prepare import PreparedData, prepare_dataset
from specdec_core.errors import UserError, UserErrors

Prepare = Callable[..., PreparedData]
TOKENIZER = vision_tokenizer()
PROCESSOR = PatchProcessor(TOKENIZER)
PAD = TOKENIZER.convert_tokens_to_ids(IMAGE)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    def call(*files: Path, media: MediaProcessor | None = PROCESSOR, **keys: Any) -> PreparedData:
        section = DataSection(**{"cache_dir": tmp_path / "cache", "max_length": 256, **keys})
        return prepare_dataset(section, files, TOKENIZER, (STOP,), media=media)

    return call


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    """Six conversations, of images of several sizes and of text, beside the directory of their images."""
    folder = tmp_path / "set" / "images"
    folder.mkdir(parents=True)
    for number in range(6):
        (folder / f"{number}.png").write_bytes(encoded(picture(40 + 20 * number, 60, seed=number)))
    film = {"type": "video", "video": ["images/0.png", "images/0.png"], "fps": 2}
    records = [
        asking([image_part("images/0.png"), text_part("what is it")]),
        asking("the red apple", "the blue river"),
        asking([image_part("images/1.png"), text_part("and"), image_part(folder / "2.png")], "seven eight nine"),
        asking([film, text_part("count")], "loop"),
        {"messages": [*asking([image_part("images/3.png")], "a")["conversations"],
                      *asking([text_part("and"), image_part("images/4.png")], "of the river")["conversations"]]},
        asking([image_part(f"file://{folder}/5.png")], "green"),
    ]  # fmt: skip
    return write_lines(tmp_path / "set" / "talks.jsonl", *records)


def all_rows(rows: Rows) -> list[Row]:
    return [rows[index] for index in range(len(rows))]


def documents(row: Row) -> list[dict[str, Any]]:
    """Each document of a row with what is its own of the inputs."""
    found, taken = [], {"image": 0, "video": 0}
    for document in range(int(row.document_ids.max()) + 1):
        own = row.document_ids == document
        parts = {"ids": row.ids[own], "positions": row.positions[:, own], "mask": row.loss_mask[own]}
        for kind, pad in PROCESSOR.pads.items():
            grids, tokens = row.extras.get(f"{kind}_grid_thw", torch.zeros(0, 3)), int((row.ids[own] == pad).sum())
            at = taken[kind]
            while int(grids[at : taken[kind]].prod(1).sum()) < 4 * tokens:
                taken[kind] += 1
            parts[kind] = grids[at : taken[kind]]
            patches = grids.prod(1)
            pixels = row.extras.get("pixel_values" if kind == "image" else "pixel_values_videos", torch.zeros(0))
            parts[f"{kind} pixels"] = pixels[int(patches[:at].sum()) : int(patches[: taken[kind]].sum())]
        found.append({name: tensor.tolist() for name, tensor in parts.items()})
    return found


def test_a_row_is_what_the_files_say(prepare: Prepare, talks: Path) -> None:
    prepared = prepare(talks, packing=False)
    assert (prepared.report.conversations, prepared.report.media) == (6, 7)
    assert "7 images or videos in them" in prepared.report.summary()
    row = prepared.rows[2]
    pictures = [LoadedMedium("image", (picture(40 + 20 * number, 60, seed=number),)) for number in (1, 2)]
    expected = PROCESSOR.process(pictures)
    first, second = expected.replacements
    text = (
        f"<|im_start|>user\n<|vision_start|>{first}<|vision_end|>and<|vision_start|>{second}<|vision_end|><|im_end|>\n"
        "<|im_start|>assistant\nseven eight nine<|im_end|>"
    )
    assert TOKENIZER.decode(row.ids) == text
    assert TOKENIZER.decode(row.ids[row.loss_mask]) == "seven eight nine<|im_end|>"
    assert set(row.extras) == {"pixel_values", "image_grid_thw"}
    for name, tensor in expected.inputs.items():
        assert torch.equal(row.extras[name], tensor)
    assert torch.equal(row.positions, PROCESSOR.positions(row.ids, expected.inputs))
    assert row.positions.shape == (3, len(row.ids))
    text_only = prepared.rows[1]
    assert text_only.extras == {}
    assert text_only.positions.tolist() == [list(range(len(text_only.ids)))] * 3
    assert set(prepared.rows[3].extras) == {"pixel_values_videos", "video_grid_thw"}


def test_packed_documents_are_what_they_are_alone(prepare: Prepare, talks: Path) -> None:
    alone = [documents(row)[0] for row in all_rows(prepare(talks, packing=False).rows)]
    packed = prepare(talks)
    assert len(packed.rows) < 6
    for row, sequences in zip(all_rows(packed.rows), packed.rows.documents, strict=True):
        assert documents(row) == [alone[sequence] for sequence in sequences]


def test_a_batch_holds_its_rows(prepare: Prepare, talks: Path) -> None:
    rows = all_rows(prepare(talks, packing=False).rows)
    batch = collate(rows)
    size = max(len(row.ids) for row in rows)
    assert batch.positions.shape == (3, 6, size)
    for index, row in enumerate(rows):
        assert torch.equal(batch.positions[:, index, : len(row.ids)], row.positions)
        assert (batch.document_ids[index, len(row.ids) :] == PADDING_DOCUMENT).all()
    pixels = [row.extras["pixel_values"] for row in rows if "pixel_values" in row.extras]
    assert torch.equal(batch.extras["pixel_values"], torch.cat(pixels))
    assert int(batch.extras["image_grid_thw"].prod(1).sum()) == 4 * int((batch.ids == PAD).sum())
    # A family with axes has them for text alone, too.
    assert collate([rows[1]]).positions.shape == (3, 1, len(rows[1].ids))
    assert collate([rows[1]]).extras == {}


def test_no_image_is_cut(prepare: Prepare, talks: Path) -> None:
    whole = all_rows(prepare(talks, packing=False).rows)
    for limit in (16, 20, 24, 30, 36, 42):
        prepared = prepare(talks, packing=False, max_length=limit)
        assert prepared.report.truncated
        for row, entry in zip(all_rows(prepared.rows), prepared.rows.dataset, strict=True):
            full = whole[entry["line"] - 1]
            size = len(row.ids)
            assert size <= limit
            assert torch.equal(row.ids, full.ids[:size])
            assert torch.equal(row.positions, full.positions[:, :size])
            assert int(row.loss_mask.sum()) == int(full.loss_mask[:limit].sum()) > 0
            tokens = 4 * int(torch.isin(row.ids, torch.tensor(list(PROCESSOR.pads.values()))).sum())
            grids = [grid for name, grid in row.extras.items() if name.endswith("grid_thw")]
            assert sum(int(grid.prod(1).sum()) for grid in grids) == tokens
            for name, tensor in row.extras.items():
                assert torch.equal(tensor, full.extras[name][: len(tensor)])


def tables(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache" / "specdec").iterdir()}


def test_the_table_is_found_again_until_an_image_changes(prepare: Prepare, talks: Path, tmp_path: Path) -> None:
    first = prepare(talks)
    (name,) = tables(tmp_path)
    assert prepare(talks).rows.fingerprint == first.rows.fingerprint
    assert tables(tmp_path) == {name}
    image = talks.parent / "images" / "1.png"
    stamp, content = image.stat(), image.read_bytes()
    image.write_bytes(encoded(picture(60, 60, seed=9)))
    changed = prepare(talks)
    assert tables(tmp_path) == {name, f"{name}-1"}
    assert changed.rows.fingerprint != first.rows.fingerprint
    assert [row.ids.tolist() for row in all_rows(changed.rows)] == [row["ids"] for row in _as_rows(first)]
    keys = [{row.key for row in all_rows(prepared.rows)} for prepared in (changed, prepare(talks))]
    assert keys[0] == keys[1]
    # Touched, but the same bytes: the old rows again, by whatever table.
    image.write_bytes(content)
    assert prepare(talks).rows.fingerprint == first.rows.fingerprint
    os.utime(image, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert prepare(talks).rows.fingerprint == first.rows.fingerprint


def _as_rows(prepared: PreparedData) -> list[dict[str, list[int]]]:
    ids = prepared.rows.dataset["ids"]
    return [{"ids": [token for index in row for token in ids[index]]} for row in prepared.rows.documents]


def test_an_image_that_was_missing_is_found_once_it_is_there(prepare: Prepare, talks: Path, tmp_path: Path) -> None:
    image = talks.parent / "images" / "1.png"
    content = image.read_bytes()
    image.unlink()
    message = rf"{talks}:3: image 1 \(images/1\.png\) is missing: there is no file {image}; mend the path"
    for _ in range(2):
        with pytest.raises(UserErrors, match=message):
            prepare(talks)
    assert len(tables(tmp_path)) == 1
    report = prepare(talks, on_error="skip").report
    assert (dict(report.skipped), report.conversations) == ({"missing image": 1}, 5)
    image.write_bytes(content)
    assert prepare(talks).report.conversations == 6


def test_what_decides_about_images_makes_a_new_table(prepare: Prepare, talks: Path, tmp_path: Path) -> None:
    fingerprints = {
        prepare(talks).rows.fingerprint,
        prepare(talks, images="lenient").rows.fingerprint,
        prepare(talks, max_image_pixels=10**6).rows.fingerprint,
        prepare(talks, media=PatchProcessor(TOKENIZER, most=4)).rows.fingerprint,
    }
    assert len(fingerprints) == len(tables(tmp_path)) == 4


def test_keys_cover_the_images(prepare: Prepare, tmp_path: Path) -> None:
    def key(seed: int, **options: Any) -> str:
        (tmp_path / "a.png").write_bytes(encoded(picture(seed=seed)))
        return prepare(write_lines(tmp_path / "a.jsonl", asking([image_part("a.png")])), **options).rows[0].key

    assert key(1) != key(2)
    assert key(1) == key(1)
    assert key(1) != key(1, media=PatchProcessor(TOKENIZER, most=17))


def test_the_same_set_elsewhere_is_the_same_data(prepare: Prepare, talks: Path, tmp_path: Path) -> None:
    relative = write_lines(talks, *[asking([image_part(f"images/{number}.png")]) for number in range(4)])
    first = prepare(relative)
    shutil.copytree(talks.parent, tmp_path / "copy")
    shutil.rmtree(talks.parent)
    copied = prepare(tmp_path / "copy" / "talks.jsonl")
    assert copied.rows.fingerprint == first.rows.fingerprint
    assert [row.key for row in all_rows(copied.rows)]
    # What is said of a missing image names the directory that it is missing from.
    for directory in (talks.parent, tmp_path / "copy"):
        directory.mkdir(exist_ok=True)
        file = write_lines(directory / "lost.jsonl", asking([image_part("lost.png")]))
        with pytest.raises(UserErrors, match=rf"there is no file {directory}/lost\.png"):
            prepare(file)


def test_processes_make_the_same_rows(prepare: Prepare, talks: Path, tmp_path: Path) -> None:
    (talks.parent / "images" / "1.png").unlink()
    one = prepare(talks, on_error="skip")
    shutil.rmtree(tmp_path / "cache")
    two = prepare(talks, on_error="skip", num_proc=2)
    assert (one.report, one.rows.fingerprint) == (two.report, two.rows.fingerprint)
    assert [row.key for row in all_rows(one.rows)] == [row.key for row in all_rows(two.rows)]


def test_an_image_that_goes_or_changes_while_training_is_named(prepare: Prepare, talks: Path) -> None:
    prepared = prepare(talks, packing=False)
    image = talks.parent / "images" / "2.png"
    image.write_bytes(encoded(picture(80, 60, seed=99)))
    changed = rf"^{talks}:3: image 2 \({image}\) has changed since the data was tokenised; restore it, or start again"
    with pytest.raises(UserError, match=changed):
        prepared.rows[2]
    image.unlink()
    gone = rf"^{talks}:3: image 2 \({image}\) is missing: there is no file"
    with pytest.raises(UserError, match=gone):
        prepared.rows[2]
    assert prepared.rows[0].extras
    loader = BatchLoader(prepared.rows, 1, shuffle=False)
    batches = iter(loader)
    assert [next(batches).num_tokens > 0 for _ in range(2)] == [True, True]
    with pytest.raises(UserError, match=gone):
        next(batches)
    assert loader.state()["rows_done"] == 2


def test_batches_made_ahead_are_the_same_and_can_be_resumed(prepare: Prepare, talks: Path) -> None:
    rows = prepare(talks, packing=False).rows
    plain = Rows(rows.dataset, rows.documents, rows.fingerprint)
    loader = BatchLoader(rows, 2, seed=4)
    orders = [[batch.row_keys for batch in loader] for _ in range(2)]
    lengths = [[batch.ids.tolist() for batch in BatchLoader(plain, 2, seed=4)]]
    assert lengths == [[batch.ids.tolist() for batch in BatchLoader(rows, 2, seed=4)]]
    for done in range(3):
        stopped = BatchLoader(rows, 2, seed=4)
        batches = iter(stopped)
        taken = [next(batches).row_keys for _ in range(done)]
        state = json.loads(json.dumps(stopped.state()))
        batches.close()  # type: ignore[attr-defined]
        resumed = BatchLoader(rows, 2, seed=4)
        resumed.load_state(state)
        assert taken + [batch.row_keys for batch in resumed] == orders[0]
        assert [batch.row_keys for batch in resumed] == orders[1]


def test_a_target_that_reads_text_only_says_so(prepare: Prepare, talks: Path) -> None:
    with pytest.raises(
        UserErrors, match=r'talks\.jsonl:1: a message has a part of type "image", and this target reads'
    ):
        prepare(talks, media=None)
    report = prepare(talks, media=None, on_error="skip").report
    assert dict(report.skipped) == {"content of type image": 4, "content of type video": 1}


def test_a_frame_of_a_video_is_named(prepare: Prepare, talks: Path) -> None:
    film = {"type": "video", "video": ["images/0.png", "images/9.png"]}
    file = write_lines(talks, asking([image_part("images/0.png"), film, text_part("what")]))
    with pytest.raises(
        UserErrors, match=r"talks\.jsonl:1: frame 2 of video 2 \(images/9\.png\) is missing: there is no"
    ):
        prepare(file)


def test_what_the_family_cannot_read_is_named(prepare: Prepare, tmp_path: Path) -> None:
    (tmp_path / "line.png").write_bytes(encoded(picture(1000, 2)))
    file = write_lines(tmp_path / "a.jsonl", asking("fine"), asking([image_part("line.png")]))
    message = r"a\.jsonl:2: image 1 \(line\.png\) is refused by the target's processor: absolute aspect ratio must be"
    with pytest.raises(UserErrors, match=message):
        prepare(file)
