"""What becomes of a run whose images are broken, or come from servers that are not always there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from broken_images import break_images
from image_server import Server, serving
from tiny_vision import (
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
from specdec_core.data import sources
from specdec_core.data.dataset import problems, tokenised
from specdec_core.data.prepare import PreparedData, media_reader, prepare_dataset
from specdec_core.data.template import ChatTemplate
from specdec_core.errors import UserErrors

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
TOKENIZER = vision_tokenizer()
PROCESSOR = PatchProcessor(TOKENIZER)
EVERY = 20
"""Lines from one good one to the next."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sources, "PAUSES", (0.0,))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def section(tmp_path: Path, **keys: Any) -> DataSection:
    return DataSection(**{"cache_dir": tmp_path / "cache", "max_length": 256, **keys})


def prepare(tmp_path: Path, file: Path, **keys: Any) -> PreparedData:
    return prepare_dataset(section(tmp_path, **keys), [file], TOKENIZER, (STOP,), media=PROCESSOR)


@pytest.mark.parametrize("policy", ["strict", "lenient"])
def test_two_hundred_broken_images(tmp_path: Path, policy: str) -> None:
    broken = break_images(tmp_path)
    assert len(broken) >= 200
    (tmp_path / "good.png").write_bytes(encoded(picture()))
    records = [asking([image_part(source), text_part("what")]) for source, _, _ in broken]
    for at in range(0, len(records), EVERY):
        records.insert(at, asking([image_part("good.png"), text_part("what")]))
    file = write_lines(tmp_path / "talks.jsonl", *records)
    lenient = policy == "lenient"
    wanted = {line: said for line, said in enumerate(_said(broken, lenient, len(records)), start=1) if said is not None}

    chosen = section(tmp_path, images=policy)
    template = ChatTemplate(TOKENIZER, (STOP,), markers=PROCESSOR.markers)
    reader = media_reader(chosen, PROCESSOR)
    table, _ = tokenised(
        [file], template, max_length=256, media=reader, on_error="skip", cache_dir=chosen.cache_dir, num_proc=2
    )
    found = {problem.line: str(problem) for problem in problems(table, [file])}
    assert found.keys() == wanted.keys()
    for line, message in found.items():
        source = records[line - 1]["conversations"][0]["content"][0]["image"]
        assert message.startswith(f"{file}:{line}: image 1 ({source[:40]}")
        assert wanted[line] in message
        assert "\n" not in message
        assert len(message) < 700

    prepared = prepare(tmp_path, file, images=policy, on_error="skip")
    assert prepared.report.conversations == len(records) - len(wanted)
    assert sum(prepared.report.skipped.values()) == len(wanted)
    assert all(prepared.rows[index].extras for index in range(len(prepared.rows)))
    with pytest.raises(UserErrors) as caught:
        prepare(tmp_path, file, images=policy)
    first = sorted(found)[:10]
    assert [*caught.value.messages[:10]] == [found[line] for line in first]
    assert caught.value.messages[10].startswith(f"… and {len(wanted) - 10} more; mend them, or set data.on_error")


def _said(broken: list[tuple[str, str, bool]], lenient: bool, lines: int) -> list[str | None]:
    """What is to be said of each line; nothing of the good ones."""
    waiting = iter(broken)
    said: list[str | None] = []
    for line in range(lines):
        _, words, mended = ("", "", True) if line % EVERY == 0 else next(waiting)
        said.append(None if line % EVERY == 0 or (lenient and mended) else words)
    return said


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


def test_a_server_that_is_down_is_asked_again_where_errors_stop_the_run(tmp_path: Path, server: Server) -> None:
    content = encoded(picture())
    records = [asking([image_part(f"{server.url}/{name}.png")]) for name in "ab"]
    file = write_lines(tmp_path / "talks.jsonl", *records)
    server.files.update({"/a.png": content, "/b.png": 503})
    with pytest.raises(UserErrors, match=r"talks\.jsonl:2: image 1 \(http.*/b\.png\) cannot be downloaded: .* 503"):
        prepare(tmp_path, file)
    assert {path.name for path in (tmp_path / "cache" / "specdec").iterdir()} == {"downloads"}
    # Where such lines are left out, they stay left out: a second run is as the first.
    assert prepare(tmp_path, file, on_error="skip").report.conversations == 1
    server.files["/b.png"] = content
    assert prepare(tmp_path, file, on_error="skip").report.conversations == 1
    both = prepare(tmp_path, file)
    assert both.report.conversations == 2
    assert prepare(tmp_path, file, on_error="skip").rows.fingerprint == both.rows.fingerprint
    asked = len(server.asked)
    assert server.asked.count("/a.png") == 1
    assert both.rows[0].extras
    assert len(server.asked) == asked


def test_a_download_that_was_lost_is_fetched_again_and_must_be_the_same(tmp_path: Path, server: Server) -> None:
    server.files["/a.png"] = encoded(picture())
    file = write_lines(tmp_path / "talks.jsonl", asking([image_part(f"{server.url}/a.png")]))
    rows = prepare(tmp_path, file).rows
    (kept,) = (tmp_path / "cache" / "specdec" / "downloads").iterdir()
    kept.unlink()
    assert rows[0].extras
    assert server.asked.count("/a.png") == 2
    kept.unlink()
    server.files["/a.png"] = encoded(picture(seed=5))
    with pytest.raises(Exception, match=r"talks\.jsonl:1: image 1 .* has changed since the data was tokenised"):
        rows[0]
