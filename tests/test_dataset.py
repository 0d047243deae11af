"""From files to packed rows: the data room's front door, its cache and its report."""

from __future__ import annotations

import gzip
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from specdec_core.config.run import DataSection
from specdec_core.data.prepare import PreparedData, prepare_dataset
from specdec_core.data.vocab import count_supervised
from specdec_core.errors import UserError, UserErrors

STOP = 2
Prepare = Callable[..., PreparedData]


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def tokenizer(tiny_target_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_target_dir)


@pytest.fixture
def prepare(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Prepare:
    def call(*files: Path, split: str = "train", **keys: Any) -> PreparedData:
        section = DataSection(**{"cache_dir": tmp_path / "cache", "max_length": 128, **keys})
        return prepare_dataset(section, files, tokenizer, (STOP,), split=split)

    return call


def conversation(*texts: str, **keys: Any) -> str:
    roles = ["user", "assistant"] * len(texts)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return json.dumps({"conversations": messages, **keys})


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


def texts(prepared: PreparedData, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [tokenizer.decode(row["ids"]) for row in prepared.rows.dataset]


def content(prepared: PreparedData) -> list[Any]:
    return [[row.key, row.ids.tolist()] for row in map(prepared.rows.__getitem__, range(len(prepared.rows)))]


def test_rows_hold_what_the_files_say(
    prepare: Prepare, tokenizer: PreTrainedTokenizerBase, conversations_file: Path
) -> None:
    prepared = prepare(conversations_file, max_length=256)
    records = [json.loads(line)["conversations"] for line in conversations_file.read_text().splitlines()]
    wanted = [tokenizer.apply_chat_template(record, tokenize=False).removesuffix("\n") for record in records]
    assert texts(prepared, tokenizer) == wanted
    packed = [tokenizer.decode(prepared.rows[index].ids) for index in range(len(prepared.rows))]
    assert sorted(packed) == sorted("".join(wanted[i] for i in row) for row in prepared.rows.documents)
    report = prepared.report
    answers = sum(message["role"] == "assistant" for record in records for message in record)
    tokens = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in wanted]
    assert (report.conversations, report.sequences, report.tokens) == (40, 40, sum(tokens))
    assert (report.stop_tokens, report.truncated, report.dropped) == (answers, 0, 0)
    assert report.supervised == int(count_supervised(prepared.rows.dataset, 512).sum())
    assert report.rows == len(prepared.rows) < 40
    assert max(len(prepared.rows[index].ids) for index in range(len(prepared.rows))) <= 256
    assert prepared.rows.source(39) == f"{conversations_file}:40"


def test_without_packing_each_sequence_has_a_row(prepare: Prepare, conversations_file: Path) -> None:
    prepared = prepare(conversations_file, packing=False)
    assert prepared.rows.documents == [(index,) for index in range(40)]
    assert "packed" not in prepared.report.summary()


def test_long_sequences_are_cut_at_the_right_and_dropped_if_no_answer_is_left(
    prepare: Prepare, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    file = write(
        tmp_path / "a.jsonl",
        conversation("the red apple", "the blue river " * 30),
        conversation("the red apple " * 30, "because"),
        conversation("code", "counts"),
    )
    prepared = prepare(file, max_length=32)
    report = prepared.report
    assert (report.conversations, report.sequences, report.truncated, report.dropped) == (2, 2, 2, 1)
    assert (report.tokens, report.stop_tokens) == (32 + len(prepared.rows.dataset[1]["ids"]), 1)
    assert prepared.rows.source(1) == f"{file}:3"
    assert "2 sequences cut at data.max_length; 1 sequence dropped with no supervised token left" in report.summary()


def test_a_sequence_that_just_fits_is_not_cut(prepare: Prepare, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", conversation("the red apple", "the blue river"))
    size = prepare(file).report.tokens
    assert [prepare(file, max_length=size - less).report.truncated for less in (0, 1)] == [0, 1]


def test_a_cut_off_answer_teaches_no_stop_token(prepare: Prepare, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", conversation("code", "counts and", truncated=True))
    prepared = prepare(file)
    assert prepared.report.stop_tokens == 0
    assert STOP in prepared.rows.dataset[0]["ids"][:-1]
    assert prepared.report.summary().endswith("so the draft will not learn where answers end.")


def test_only_the_first_conversations_that_fit_are_taken(
    prepare: Prepare, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    short, long = conversation("a", "b"), conversation("a", "b c d e f g h i j k l m n o p q r s t")
    file = write(tmp_path / "a.jsonl", short, short, long, short)
    sizes = [len(row["ids"]) for row in prepare(file).rows.dataset]
    for budget, taken in [(sizes[0], 1), (sum(sizes[:2]), 2), (sum(sizes[:3]) - 1, 2), (sum(sizes), 4)]:
        prepared = prepare(file, max_tokens=budget)
        assert (prepared.report.conversations, prepared.report.left_out) == (taken, 4 - taken)
        assert prepared.report.tokens == sum(sizes[:taken])
    assert prepare(file, max_tokens=sizes[0], split="validation").report.conversations == 4
    with pytest.raises(UserError, match=rf"max_tokens is 3, but the first conversation of data\.train .* {sizes[0]}"):
        prepare(file, max_tokens=3)


def test_all_sequences_of_a_conversation_count_together(prepare: Prepare, tmp_path: Path) -> None:
    template = tmp_path / "forgetful.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.content if loop.last or m.role == 'user' }}<|im_end|>{% endfor %}"
    )
    file = write(tmp_path / "a.jsonl", *[conversation("the", "red", "apple", "river")] * 3)
    keys = {"chat_template": template, "packing": False}
    whole = prepare(file, **keys).report
    assert (whole.conversations, whole.sequences) == (3, 6)
    part = prepare(file, **keys, max_tokens=whole.tokens - 1).report
    assert (part.conversations, part.sequences, part.left_out) == (2, 4, 1)


def test_bad_lines_stop_or_are_counted(prepare: Prepare, tmp_path: Path) -> None:
    refusing = tmp_path / "refusing.jinja"
    refusing.write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ m.content }}<|im_end|>{% endfor %}"
    )
    system = json.dumps({"messages": [{"role": "system", "content": "x"}, {"role": "assistant", "content": "y"}]})
    file = write(tmp_path / "a.jsonl", conversation("a", "b"), system, "", conversation("c", "d"))
    with pytest.raises(UserErrors) as caught:
        prepare(file, chat_template=refusing)
    assert caught.value.messages == (f"{file}:2: the chat template refuses this conversation: no system role",)
    broken = write(tmp_path / "b.jsonl", "{", *["[]"] * 30)
    with pytest.raises(UserErrors) as caught:
        prepare(file, broken, chat_template=refusing)
    assert len(caught.value.messages) == 10
    assert caught.value.messages[0].startswith(f"{broken}:1: not valid JSON")
    report = prepare(file, broken, chat_template=refusing, on_error="skip").report
    assert dict(report.skipped) == {"refused by the chat template": 1, "not JSON": 1, "not an object": 30}
    assert (report.conversations, report.dropped) == (2, 0)
    wording = "32 lines skipped (not JSON: 1, not an object: 30, refused by the chat template: 1)"
    assert wording in report.summary()
    with pytest.raises(UserErrors, match=r"… and 22 more; mend them, or set data\.on_error = \"skip\""):
        prepare(file, broken, chat_template=refusing)


def test_nothing_to_learn_from_is_an_error(prepare: Prepare, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.validation names no file"):
        prepare(split="validation")
    empty = write(tmp_path / "empty.jsonl", "", "")
    with pytest.raises(UserError, match=r"no conversation in .*empty\.jsonl; every line is blank"):
        prepare(empty)
    bad = write(tmp_path / "bad.jsonl", "{", "{")
    with pytest.raises(UserError, match=r"nothing to learn from .*: 2 lines skipped \(not JSON\)"):
        prepare(bad, on_error="skip")
    long = write(tmp_path / "long.jsonl", conversation("the red apple " * 30, "because"))
    with pytest.raises(UserError, match=r": 1 sequences with no answer within data\.max_length"):
        prepare(long, max_length=16)
    with pytest.raises(UserError, match=r"absent\.jsonl: no such file"):
        prepare(tmp_path / "absent.jsonl")
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b"[]" * 1000)[:-9])
    with pytest.raises(UserError, match=r"cut\.jsonl\.gz: not a complete gzip file"):
        prepare(cut)


def built(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache" / "specdec").iterdir()}


def test_tokenised_data_is_kept_and_found_again(prepare: Prepare, tmp_path: Path, conversations_file: Path) -> None:
    first = prepare(conversations_file)
    (name,) = built(tmp_path)
    stamp = (tmp_path / "cache" / "specdec" / name).stat().st_mtime_ns
    again = prepare(conversations_file)
    assert (tmp_path / "cache" / "specdec" / name).stat().st_mtime_ns == stamp
    assert (again.report, again.rows.fingerprint, content(again)) == (
        first.report,
        first.rows.fingerprint,
        content(first),
    )
    # Another name or another form of the same content is the same data; the messages name the new file.
    moved = tmp_path / "moved.jsonl.gz"
    moved.write_bytes(gzip.compress(conversations_file.read_bytes()))
    elsewhere = prepare(moved)
    assert built(tmp_path) == {name}
    assert (elsewhere.rows.fingerprint, elsewhere.rows.source(0)) == (first.rows.fingerprint, f"{moved}:1")
    # Cut down after tokenising, so no new table, but other rows.
    assert prepare(conversations_file, packing=False).rows.fingerprint != first.rows.fingerprint
    assert prepare(conversations_file, max_tokens=200).rows.fingerprint != first.rows.fingerprint
    assert built(tmp_path) == {name}


def test_whatever_changes_the_tokens_makes_a_new_table(
    prepare: Prepare, tmp_path: Path, conversations_file: Path
) -> None:
    prepare(conversations_file)
    prepare(conversations_file, max_length=64)
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    prepare(conversations_file, chat_template=template)
    changed = tmp_path / "changed.jsonl"
    shutil.copy(conversations_file, changed)
    with changed.open("a") as file:
        file.write(conversation("a", "b"))
    prepare(changed)
    assert len(built(tmp_path)) == 4


def test_a_run_that_was_broken_off_leaves_nothing_that_counts(
    prepare: Prepare, tmp_path: Path, conversations_file: Path
) -> None:
    bad = write(tmp_path / "bad.jsonl", "{")
    with pytest.raises(UserErrors):
        prepare(bad)
    assert built(tmp_path) == set()


def test_processes_make_the_same_rows_in_the_same_order(
    prepare: Prepare, tmp_path: Path, conversations_file: Path
) -> None:
    one = prepare(conversations_file)
    shutil.rmtree(tmp_path / "cache")
    two = prepare(conversations_file, num_proc=2)
    assert (one.report, content(one)) == (two.report, content(two))


def test_a_cache_that_cannot_be_written_is_the_users_to_mend(
    prepare: Prepare, tmp_path: Path, conversations_file: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match=r"cannot write tokenised data to .*file/specdec: .*set data\.cache_dir"):
        prepare(conversations_file, cache_dir=blocked)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (100, 12_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(UserError, match=r"cannot write tokenised data to .*File too large"):
                prepare(conversations_file)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert built(tmp_path) == set()
