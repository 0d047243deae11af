"""Lines of conversations: what is accepted, and what is said of the rest."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec_core.data.conversations import (
    ROLES,
    Conversation,
    LineError,
    Message,
    parse_conversation,
    read_conversations,
    with_sources,
)
from specdec_core.data.media import Medium
from specdec_core.errors import UserError, UserErrors

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}


def parsed(record: Any, **options: Any) -> Conversation:
    return parse_conversation(json.dumps(record).encode(), **options)


def talk(*messages: Any, **keys: Any) -> dict[str, Any]:
    return {"conversations": list(messages), **keys}


def test_a_conversation() -> None:
    conversation = parsed(talk({"role": "system", "content": ""}, USER, ANSWER, id="a1", source="anything"))
    assert conversation == Conversation(
        (Message("system", ""), Message("user", "Hi"), Message("assistant", "Hello")), "a1"
    )
    assert conversation.templated()[1:] == [USER, ANSWER]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [USER, ANSWER]},
        talk({"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}),
        talk({"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}, ANSWER),
    ],
    ids=["messages", "from and value", "parts of text"],
)
def test_other_spellings_of_the_same(record: dict[str, Any]) -> None:
    assert parsed(record) == parsed(talk(USER, ANSWER))


def test_sharegpt_roles() -> None:
    names = ["system", "human", "gpt", "tool", "chatgpt"]
    roles = [message.role for message in parsed(talk(*({"from": name, "value": "x"} for name in names))).messages]
    assert roles == ["system", "user", "assistant", "tool", "assistant"]


def test_parts_that_are_not_text_are_kept() -> None:
    parts = [{"type": "image", "url": "cat.png"}, {"type": "text", "text": "Look"}]
    conversation = parsed(talk({"role": "user", "content": parts}, ANSWER))
    assert conversation.messages[0].content == parts
    with pytest.raises(LineError, match='part of type "image", and this target reads text only'):
        conversation.templated()


IMAGES = [
    {"type": "image", "image": "a.png"},
    {"type": "image_url", "image_url": {"url": "https://host/a.png", "detail": "low"}},
    {"type": "image_url", "image_url": "data:image/png;base64,AAAA"},
    {"type": "image", "url": "a.png"},
    {"type": "image", "path": "/a.png"},
]


def test_images_and_videos_in_the_order_of_the_text() -> None:
    film = {"type": "video", "video": ["f0.png", "f1.png"], "fps": 2}
    text = {"type": "text", "text": "Look"}
    conversation = parsed(
        talk({"role": "user", "content": [IMAGES[1], text, film, IMAGES[0]]}, ANSWER,
             {"role": "tool", "content": [IMAGES[4]]}, ANSWER)
    )  # fmt: skip
    assert conversation.media == (
        Medium("image", ("https://host/a.png",)),
        Medium("video", ("f0.png", "f1.png"), 2),
        Medium("image", ("a.png",)),
        Medium("image", ("/a.png",)),
    )
    assert [len(message.media) for message in conversation.messages] == [3, 0, 1, 0]
    bare = [message["content"] for message in conversation.templated(["image", "video"])]
    assert bare == [
        [{"type": "image"}, text, {"type": "video"}, {"type": "image"}], "Hello", [{"type": "image"}], "Hello",
    ]  # fmt: skip
    with pytest.raises(LineError, match='part of type "video", and this target reads text and images; remove the part'):
        conversation.templated(["image"])
    with pytest.raises(LineError, match='part of type "image_url", and this target reads text only; remove the part'):
        conversation.templated()


@pytest.mark.parametrize("part", IMAGES)
def test_every_way_of_naming_an_image(part: dict[str, Any]) -> None:
    (medium,) = parsed(talk({"role": "user", "content": [part]}, ANSWER)).media
    assert medium.kind == "image"
    assert medium.sources[0] in json.dumps(part)
    seen: list[str] = []
    assert with_sources(part, lambda source: seen.append(source) or "new")[next(iter(set(part) - {"type"}))] in (
        "new", {"url": "new", "detail": "low"},
    )  # fmt: skip
    assert seen == list(medium.sources)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "image"}, 'is of type "image" but names no image; add the key "image" with a path, an http'),
        (
            {"type": "image_url", "image_url": {}},
            "image_url.url must be a string, a path, an http(s) URL or a",
        ),
        (
            {"type": "image", "image": 3},
            " must be a string, a path, an http(s) URL or a data URI, found a number",
        ),
        ({"type": "image", "image": " "}, ".image is empty; name an image there"),
        (
            {"type": "video", "video": "a.mp4"},
            ".video must be the list of the video's frames, each an image, found",
        ),
        ({"type": "video", "video": []}, "each an image, found an empty list"),
        ({"type": "video"}, "each an image, found nothing"),
        ({"type": "video", "video": ["a", None]}, ".video[1] must be a string, a path"),
        ({"type": "video", "video": ["a"], "fps": 0}, ".fps must be a number above 0, the frames per second"),
        ({"type": "video", "video": ["a"], "fps": True}, ".fps must be a number above 0"),
        ({"type": "video", "video": ["a"], "fps": float("inf")}, ".fps must be a number above 0"),
    ],
)
def test_media_that_are_not_named_right(part: dict[str, Any], message: str) -> None:
    with pytest.raises(LineError) as caught:
        parsed(talk({"role": "user", "content": [{"type": "text", "text": "x"}, part]}, ANSWER))
    assert "conversations[0].content[1]" in caught.value.message
    assert message in caught.value.message


def test_targets_answer_in_text() -> None:
    answer = {"role": "assistant", "content": [{"type": "text", "text": "see"}, IMAGES[0]]}
    with pytest.raises(LineError, match=r'tions\[1\]\.content\[1\] is of type "image", and targets answer in text'):
        parsed(talk(USER, answer))


def test_truncation_marks_an_answer_or_the_last_one() -> None:
    def flags(record: dict[str, Any]) -> list[bool]:
        return [message.truncated for message in parsed(record).messages]

    assert flags(talk(USER, ANSWER, USER, ANSWER, truncated=True)) == [False, False, False, True]
    assert flags(talk(USER, {**ANSWER, "truncated": True}, USER, ANSWER)) == [False, True, False, False]
    assert flags(talk(USER, ANSWER, truncated=False)) == [False, False]
    assert flags(talk(USER, ANSWER, USER, truncated=True)) == [False, True, False]


def test_an_answer_that_calls_tools_may_be_empty() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "clock"}]}
    message = parsed(talk(USER, call, {"role": "tool", "content": ""}, ANSWER)).messages[1]
    assert (message.content, message.extras) == ("", {"tool_calls": [{"name": "clock"}]})


def test_prompts_need_no_answer() -> None:
    assert len(parsed(talk(USER), answered=False).messages) == 1


WRONG = [
    (b'{"conversations": [}', "not JSON", "not valid JSON: Expecting value at column 20"),
    (b"\xff\xfe{", "not UTF-8", "not UTF-8: byte 0xff at byte 1 of the line; save the file as UTF-8"),
    (b'{"a": ' + b"[" * 100_000, "not JSON", "not usable JSON: nested too deeply"),
    (b"9" * 5000, "not JSON", "not usable JSON: "),
    (b"[1, 2]", "not an object", 'must be an object such as {"conversations": [...]}, found a list'),
    (b"null", "not an object", "found null"),
    (
        b'{"conversation": []}',
        "missing key",
        'has no key "conversations" (or "messages"); is "conversation" a misspelling of it?',
    ),
    (b'{"id": 3}', "missing key", 'has no key "conversations" (or "messages")'),
    (talk(), "no messages", "conversations is empty"),
    ({"messages": {}}, "wrong type", "messages must be a list of messages, found an object"),
    (talk(USER, "Hello"), "wrong type", 'conversations[1] must be an object with "role" and "content", found a string'),
    (
        talk(USER, {"role": "assistant", "contents": "x"}),
        "missing key",
        'conversations[1] has no key "content"; is "contents" a misspelling of it?',
    ),
    (talk({"content": "x"}), "missing key", 'conversations[0] has no key "role"'),
    (talk({"from": "gpt", "text": "x"}), "missing key", 'conversations[0] has no key "content"'),
    (
        talk(USER, {"role": "asistant", "content": "x"}),
        "unknown role",
        'conversations[1].role is "asistant"; did you mean "assistant"?',
    ),
    (
        talk({"from": "narrator" * 9, "value": "x"}),
        "unknown role",
        'conversations[0].from is "narratornarratornarratornarratornarrato…"; allowed: system, ',
    ),
    (talk({"from": "Human", "value": "x"}), "unknown role", 'conversations[0].from is "Human"; did you mean "human"?'),
    (talk({"role": 1, "content": "x"}), "wrong type", "conversations[0].role must be a string, found a number"),
    (talk(USER, {**ANSWER, "content": " \n"}), "empty content", "conversations[1].content is empty"),
    (talk(USER, {**ANSWER, "content": []}), "empty content", "conversations[1].content is empty"),
    (talk({"from": "human", "value": ""}), "empty content", "conversations[0].value is empty"),
    (
        talk(USER, {**ANSWER, "content": None}),
        "wrong type",
        "conversations[1].content must be a string or a list of parts, found null",
    ),
    (talk({**USER, "content": ["x"]}), "wrong type", 'conversations[0].content[0] must be an object with a "type"'),
    (talk({**USER, "content": [{"text": "x"}]}), "missing key", 'conversations[0].content[0] has no "type"'),
    (
        talk({**USER, "content": [{"type": "text", "text": 3}]}),
        "missing key",
        'conversations[0].content[0] is of type "text" but has no string "text"',
    ),
    (
        talk(USER),
        "no answer",
        "conversations has no message of the assistant, so there is nothing to learn from it",
    ),
    (talk(USER, ANSWER, truncated="yes"), "wrong type", "truncated must be true or false, found a string"),
    (
        talk(USER, {**ANSWER, "truncated": 1}),
        "wrong type",
        "conversations[1].truncated must be true or false, found a number",
    ),
    (
        b'{"conversations": [{"role": "assistant", "content": "\\ud83d"}]}',
        "not UTF-8",
        "holds the escape \\ud83d, half of a surrogate pair; write the character whole",
    ),
]


@pytest.mark.parametrize(("line", "reason", "message"), WRONG, ids=[message[:60] for _, _, message in WRONG])
def test_what_is_said_of_a_bad_line(line: Any, reason: str, message: str) -> None:
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    with pytest.raises(LineError) as caught:
        parse_conversation(raw)
    assert message in str(caught.value)
    assert caught.value.reason == reason


def write(path: Path, *lines: Any) -> Path:
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return path


def test_files_are_read_in_order_compressed_or_not(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + json.dumps(talk(USER, ANSWER, id=1)).encode() + b"\r", b"")
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(talk(USER, ANSWER, id="two")).encode()))
    conversations, skipped = read_conversations([plain, packed])
    assert [conversation.id for conversation in conversations] == ["1", "two"]
    assert not skipped


def test_the_first_bad_lines_are_reported_together(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", talk(USER, ANSWER), b"", b"{", talk(USER))
    with pytest.raises(UserErrors) as caught:
        read_conversations([file])
    assert caught.value.messages == (
        f"{file}:3: not valid JSON: Expecting property name enclosed in double quotes at column 2",
        f"{file}:4: conversations has no message of the assistant, so there is nothing to learn from it",
    )
    with pytest.raises(UserErrors) as caught:
        read_conversations([write(file, *[b"{"] * 50)])
    assert len(caught.value.messages) == 10


def test_bad_lines_are_skipped_and_counted_on_request(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", b"{", talk(USER, ANSWER), b"[]", b"}", *[talk(USER)] * 20)
    conversations, skipped = read_conversations([file], on_error="skip")
    assert len(conversations) == 1
    assert skipped == Counter({"no answer": 20, "not JSON": 2, "not an object": 1})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.jsonl: no such file"):
        read_conversations([tmp_path / "absent.jsonl"], on_error="skip")
    with pytest.raises(UserError, match=r"cannot be read: Is a directory"):
        read_conversations([tmp_path], on_error="skip")
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(json.dumps(talk(USER, ANSWER)).encode() * 100)[:-20])
    with pytest.raises(UserError, match=r"cut\.jsonl\.gz: not a complete gzip file"):
        read_conversations([cut], on_error="skip")
    cut.write_bytes(b"plain text")
    with pytest.raises(UserError, match="not a complete gzip file"):
        read_conversations([cut])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(data=st.data())
def test_any_value_in_any_place_is_an_error_or_a_conversation(data: st.DataObject) -> None:
    place = record = json.loads(json.dumps(talk(USER, ANSWER, USER, ANSWER, truncated=True, id="x")))
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or data.draw(st.integers(0, 3)) == 0:
            break
        place = place[key]
    place[key] = data.draw(JSON)
    with contextlib.suppress(LineError):
        conversation = parsed(record)
        assert all(message.role in ROLES.values() for message in conversation.messages)
        assert any(message.role == "assistant" for message in conversation.messages)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_random_damage_gives_an_error_or_conversations(tmp_path: Path, suffix: str) -> None:
    good = [talk({"role": "user", "content": f"Größe {n} 🤗?"}, ANSWER, id=n) for n in range(3)]
    whole = b"\n".join(json.dumps(line, ensure_ascii=n == 1).encode() for n, line in enumerate(good))
    whole = gzip.compress(whole, mtime=0) if suffix.endswith(".gz") else whole
    file = tmp_path / f"damaged{suffix}"
    rng = random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(damaged) or 1)
            change = rng.choice(["replace", "insert", "delete", "cut"])
            if change == "replace":
                damaged[at : at + 1] = rng.randbytes(1)
            elif change == "insert":
                damaged[at:at] = rng.choice([b'"', b"{", b"\n", b"\\u", b"\x00", b"\\ud800", rng.randbytes(3)])
            elif change == "delete":
                del damaged[at : at + rng.randint(1, 9)]
            else:
                del damaged[at + 1 :]
        file.write_bytes(damaged)
        with contextlib.suppress(UserError):
            conversations, _ = read_conversations([file], on_error="skip")
            assert all(isinstance(line, Conversation) for line in conversations)
            assert read_conversations([file]) == (conversations, Counter())
