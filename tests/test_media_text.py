"""Images within texts: their places, what replaces them, and where a text may be cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_vision import (
    END,
    IMAGE,
    START,
    STOP,
    TEMPLATE,
    VIDEO,
    PatchProcessor,
    asking,
    image_part,
    text_part,
    vision_tokenizer,
)

from specdec_core.data.conversations import Conversation, LineError, Message
from specdec_core.data.template import ChatTemplate, Encoded, Rendering

TOKENIZER = vision_tokenizer()
CHAT = ChatTemplate(TOKENIZER, [STOP], markers=PatchProcessor.markers)
FILM = {"type": "video", "video": ["f0", "f1"]}


def conversation(*turns: Any) -> Conversation:
    roles = ["user", "assistant"] * len(turns)
    return Conversation(tuple(Message(role, turn) for role, turn in zip(roles, turns, strict=False)))


# Pieces of a text: plain ones, markers (True) and answers (False).
PIECES = st.lists(
    st.tuples(st.sampled_from(["text", "marker", "answer"]), st.text("abc<>", max_size=5), st.text("pq", max_size=7)),
    max_size=12,
)


@given(PIECES)
def test_markers_are_replaced_and_everything_else_stays_where_it_was(pieces: list[tuple[str, str, str]]) -> None:
    old, new = "", ""
    spans, places, new_spans, new_places, replacements = [], [], [], [], []
    for kind, text, replacement in pieces:
        before, after = (IMAGE, replacement) if kind == "marker" else (text, text)
        if kind != "text":
            (places if kind == "marker" else spans).append((len(old), len(old) + len(before)))
            (new_places if kind == "marker" else new_spans).append((len(new), len(new) + len(after)))
        if kind == "marker":
            replacements.append(replacement)
        old, new = old + before, new + after
    media = tuple(range(len(places)))
    found = Rendering(old, tuple(spans), media, tuple(places)).replaced(replacements)
    assert found == Rendering(new, tuple(new_spans), media, tuple(new_places))


@st.composite
def sequences(draw: st.DrawFn) -> Encoded:
    """Runs of tokens: context, answers and media."""
    mask: list[bool] = []
    places: list[tuple[int, int]] = []
    for kind, length in draw(st.lists(st.tuples(st.sampled_from("cam"), st.integers(1, 6)), max_size=8)):
        if kind == "m":
            places.append((len(mask), len(mask) + length))
        mask += [kind == "a"] * length
    return Encoded(np.arange(len(mask), dtype=np.int32), np.array(mask, dtype=np.bool_), tuple(places))


@given(sequences(), st.integers(1, 40))
def test_a_cut_splits_no_medium_and_keeps_all_that_is_learned(whole: Encoded, limit: int) -> None:
    kept = whole.cut(limit)
    size = len(kept.ids)
    assert size <= limit
    assert kept.ids.tolist() == whole.ids[:size].tolist()
    assert kept.mask.tolist() == whole.mask[:size].tolist()
    assert kept.mask.sum() == whole.mask[:limit].sum()
    assert kept.places == tuple(place for place in whole.places if place[1] <= size)
    assert not any(start < size < end for start, end in whole.places)
    if size < len(whole.ids):
        # Text alone is cut as late as it can be; with media nothing stands behind the last answer.
        assert size == limit if not whole.places else not size or kept.mask[-1]


def test_media_are_found_in_the_text_kind_by_kind() -> None:
    talk = conversation([FILM, text_part("and"), image_part("a"), image_part("b")], "yes", [image_part("c")], "no")
    (found,) = CHAT.render(talk)
    assert found.media == (0, 1, 2, 3)
    assert [found.text[slice(*place)] for place in found.places] == [VIDEO, IMAGE, IMAGE, IMAGE]
    assert [found.text[slice(*span)] for span in found.spans] == ["yes<|im_end|>", "no<|im_end|>"]
    # Templates may show a message's images first; then the film, the first of the media, is the last in the text.
    first = TEMPLATE.replace(
        "{% for part in m.content %}",
        "{% for part in m.content if part.type == 'image' %}<|image_pad|>{% endfor %}"
        "{% for part in m.content if part.type != 'image' %}",
    )
    tokenizer = vision_tokenizer()
    tokenizer.chat_template = first
    found = ChatTemplate(tokenizer, [STOP], markers=PatchProcessor.markers).prompt(Conversation(talk.messages[:1]))
    assert found.media == (1, 2, 0)
    assert found.text.endswith("<|im_start|>assistant\n")


def test_tokens_of_media_are_known_and_never_learned() -> None:
    (rendering,) = CHAT.render(conversation([image_part("a"), text_part("what"), image_part("b")], "the apple"))
    replaced = rendering.replaced([IMAGE * 5, IMAGE * 2])
    (encoded,) = CHAT.encode([replaced])
    pad = TOKENIZER.convert_tokens_to_ids(IMAGE)
    assert [encoded.ids[start:end].tolist() for start, end in encoded.places] == [[pad] * 5, [pad] * 2]
    assert [encoded.ids[start - 1] for start, _ in encoded.places] == [TOKENIZER.convert_tokens_to_ids(START)] * 2
    assert TOKENIZER.decode(encoded.ids[encoded.mask]) == "the apple<|im_end|>"
    # A text in which the answer is said to hold the image still learns no token of it.
    (everything,) = CHAT.encode([Rendering(replaced.text, ((0, len(replaced.text)),), (0, 1), replaced.places)])
    assert (~everything.mask).sum() == 7


def test_a_template_that_rewrites_earlier_turns_places_media_in_each_text() -> None:
    tokenizer = vision_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("{{ m.content }}", "{{ m.content if loop.last or m.role == 'user' }}")
    chat = ChatTemplate(tokenizer, [STOP], markers=PatchProcessor.markers)
    first, second = chat.render(conversation([image_part("a")], "yes", [image_part("b")], "no"))
    assert (first.media, second.media) == ((0,), (0, 1))
    assert [second.text[slice(*span)] for span in second.spans] == ["no<|im_end|>"]


@pytest.mark.parametrize(
    "talk",
    [
        conversation(f"what is {IMAGE}", "x"),
        conversation([image_part("a"), text_part(f"{VIDEO}")], "x"),
        conversation("what", f"{IMAGE} is"),
    ],
)
def test_a_marker_in_the_text_is_refused(talk: Conversation) -> None:
    with pytest.raises(LineError, match=r"a message holds <\|\w+_pad\|>, which stands for an image or a video"):
        CHAT.render(talk)


def test_a_template_that_hides_an_image_is_refused(tmp_path: Path) -> None:
    blind = tmp_path / "blind.jinja"
    blind.write_text(TEMPLATE.replace(f"{START}{IMAGE}{END}", ""))
    chat = ChatTemplate(TOKENIZER, [STOP], blind, PatchProcessor.markers)
    message = r"has 1 images before an answer, where the template writes <\|image_pad\|> 0 times; give a template"
    with pytest.raises(LineError, match=message):
        chat.render(conversation([image_part("a")], "x"))
    assert chat.fingerprint() != CHAT.fingerprint()
    assert ChatTemplate(TOKENIZER, [STOP]).fingerprint() != CHAT.fingerprint()


def test_a_template_that_reads_only_lists_gets_lists(tmp_path: Path) -> None:
    lists = tmp_path / "lists.jinja"
    lists.write_text(TEMPLATE.replace("{% if m.content is string %}{{ m.content }}{% else %}", "{% if true %}"))
    chat = ChatTemplate(TOKENIZER, [STOP], lists, PatchProcessor.markers)
    for talk in (conversation("what", "the apple", "and", "more"), conversation([image_part("a")], "yes")):
        assert chat.render(talk) == CHAT.render(talk)
    cut_off = Conversation((Message("user", "what"), Message("assistant", "the apple", truncated=True)))
    assert chat.render(cut_off) == CHAT.render(cut_off)


def test_a_conversation_without_media_is_what_it_is_to_a_text_target() -> None:
    talk = conversation("what", "the apple", "and", "more")
    assert ChatTemplate(TOKENIZER, [STOP]).render(talk) == CHAT.render(talk)
    assert asking("what")["conversations"][0]["content"] == "what"
