from __future__ import annotations

import gzip
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from specdec_core.errors import UserError, UserErrors
from specdec_core.evaluate.config import JsonlPromptsConfig
from specdec_core.evaluate.overlap import overlap
from specdec_core.evaluate.prompts import JsonlPrompts, Prompt, spread

USER = {"role": "user", "content": "Why?"}


def read(path: Path | str, **options: Any) -> list[Prompt]:
    return list(JsonlPrompts(JsonlPromptsConfig(path=str(path), **options)))


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in records))
    return path


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Why?"},
        {"question": "Why?", "expected": "because"},
        {"turns": ["Why?", "And then?"]},
        {"conversations": [USER, {"role": "assistant", "content": "So."}, {"role": "user", "content": "And then?"}]},
        {"messages": [USER]},
        {"prompt": [USER]},
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]},
    ],
)
def test_the_first_question_of_every_layout(tmp_path: Path, record: dict[str, Any]) -> None:
    (prompt,) = read(write(tmp_path / "some.jsonl", {"id": 7, "category": "sums", **record}))
    assert prompt == Prompt("7", "sums", (USER,), tmp_path)
    assert prompt.text == "Why?"


def test_images_stand_in_the_question_and_begin_at_the_file(tmp_path: Path) -> None:
    image, text = {"type": "image", "image": "a.png"}, {"type": "text", "text": "Why?"}
    record = {"messages": [{"role": "user", "content": [image, text]}, {"role": "assistant", "content": "So."}]}
    path = write(tmp_path / "some.jsonl", record)
    (prompt,) = read(path)
    assert prompt.messages == ({"role": "user", "content": [image, text]},)
    assert (prompt.directory, prompt.text) == (tmp_path, "Why?")
    (around,) = read(path, template="Look: {prompt} Be brief.")
    before, after = ({"type": "text", "text": words} for words in ("Look: ", " Be brief."))
    assert around.messages[0]["content"] == [before, image, text, after]
    (behind,) = read(path, template="{prompt} Be brief.")
    assert behind.messages[0]["content"] == [image, text, after]


def test_a_system_message_stays(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    (prompt,) = read(write(tmp_path / "a.jsonl", {"messages": [system, USER, {"role": "assistant", "content": "No."}]}))
    assert prompt.messages == (system, USER)


def test_ids_and_categories(tmp_path: Path) -> None:
    records = [{"question_id": 81, "prompt": "a"}, {"task_id": "T/1", "prompt": "b"}, {"prompt": "c"}]
    path = write(tmp_path / "odd.name.jsonl", records[0], "", *records[1:])
    assert [(p.id, p.category) for p in read(path)] == [("81", "odd.name"), ("T/1", "odd.name"), ("line-4", "odd.name")]
    assert {p.category for p in read(path, category="mine")} == {"mine"}


def test_field_and_template(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "x", "code": "def {f}(): {prompt}"})
    (prompt,) = read(path, field="code", template="Do {this}:\n{prompt}")
    assert prompt.text == "Do {this}:\ndef {f}(): {prompt}"


def test_compressed_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb") as file:
        file.write(b"\xef\xbb\xbf" + json.dumps({"prompt": "é"}, ensure_ascii=False).encode())
    assert [(p.category, p.text) for p in read(path)] == [("a", "é")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "a.jsonl:2: not valid JSON"),
        ("[1]", "a.jsonl:2: must be an object"),
        ({"promt": "x"}, "a.jsonl:2: has none of the keys conversations, messages, turns, prompt, question"),
        ({"prompt": " "}, "a.jsonl:2: .*is empty"),
        ({"prompt": 3}, "a.jsonl:2: .*must be a string"),
        ({"turns": []}, "a.jsonl:2: .*is empty"),
        ({"messages": [{"role": "usr", "content": "x"}]}, 'a.jsonl:2: .*did you mean "user"'),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "a.jsonl:2: has no message of the user"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "image": ""}]}]}, "a.jsonl:2: .*is empty"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, 'a.jsonl:2: .*a part of type "audio"'),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: object, message: str) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "fine"}, line)
    with pytest.raises(UserErrors, match=message):
        read(path)


def test_bad_lines_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(UserErrors) as caught:
        read(write(tmp_path / "a.jsonl", "{", {"prompt": "fine"}, "["))
    assert [message.split(":")[1] for message in caught.value.messages] == ["1", "3"]


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(UserErrors, match=r"a\.jsonl:1: not valid JSON: .*utf-8"):
        read(tmp_path / "a.jsonl")


def test_files_that_hold_nothing_or_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.jsonl holds no prompts"):
        read(write(tmp_path / "a.jsonl", ""))
    with pytest.raises(UserError, match=r"b\.jsonl: no such file"):
        read(tmp_path / "b.jsonl")


def test_a_template_without_a_place_for_the_prompt() -> None:
    with pytest.raises(ValidationError, match=r"must say \{prompt\} where the prompt goes"):
        JsonlPromptsConfig(path="a", template="Do it")


def test_a_file_in_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_prompts"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    write(package / "data" / "q.jsonl", {"prompt": "Why?"})
    monkeypatch.syspath_prepend(tmp_path)
    assert [p.text for p in read("package:some_prompts/data/q.jsonl")] == ["Why?"]
    assert "some_prompts" not in sys.modules
    with pytest.raises(UserError, match="no such file"):
        read("package:some_prompts/data/none.jsonl")


@pytest.mark.parametrize(
    "path", ["package:no_such_package/a.jsonl", "package:a.b/c", "package:json.tool/x", "package:/"]
)
def test_a_package_that_is_not_installed(path: str) -> None:
    with pytest.raises(UserError, match="there is no installed package"):
        read(path)


def test_a_limit_takes_prompts_from_the_whole_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *({"prompt": str(i)} for i in range(80)))
    assert [p.text for p in read(path, limit=4)] == ["0", "20", "40", "60"]


@given(st.integers(0, 50), st.integers(1, 60))
def test_spread_takes_as_many_as_asked_in_order(size: int, limit: int) -> None:
    taken = spread(range(size), limit)
    assert len(taken) == min(size, limit)
    assert sorted(set(taken)) == list(taken)
    gaps = {b - a for a, b in pairwise(taken)}
    assert max(gaps, default=0) - min(gaps, default=0) <= 1


def test_overlap_counts_ngrams_case_and_punctuation_aside() -> None:
    training = ["The cat sat on the mat, and then it slept.", "Other words."]
    found = overlap(["A the CAT sat -- on the mat?", "short"], training, n=3)
    assert (found.shared, found.total, found.share) == (4, 5, 0.8)
    assert overlap(["too short"], training).share == 0.0


def test_overlap_does_not_run_from_one_text_into_the_next() -> None:
    assert overlap(["a b c d"], ["a b", "c d"], n=3).shared == 0
    assert overlap(["a b", "c d"], ["a b c d"], n=3).total == 0


words = st.lists(st.sampled_from("abc"), max_size=12).map(" ".join)


@given(st.lists(words, max_size=3), st.lists(words, max_size=3), st.integers(1, 4))
def test_overlap_equals_a_plain_count(texts: list[str], training: list[str], n: int) -> None:
    def grams(items: list[str]) -> list[str]:
        split = [item.split() for item in items]
        return [" ".join(item[i : i + n]) for item in split for i in range(len(item) - n + 1)]

    found = overlap(texts, training, n)
    seen = grams(training)
    assert (found.shared, found.total) == (sum(g in seen for g in grams(texts)), len(grams(texts)))
