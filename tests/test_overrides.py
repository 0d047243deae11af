"""`section.key=value` on the command line."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from specdec_core.config.overrides import OverrideError, apply_overrides, parse_override, parse_value

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
SCALARS = st.one_of(st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False, allow_infinity=False), TEXT)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=6)
WORDS = st.from_regex(r"[A-Za-z_./][A-Za-z0-9_./ :-]{0,15}", fullmatch=True).map(str.strip)
KEYS = st.from_regex(r"[a-z]{1,5}", fullmatch=True)


@given(VALUES)
def test_a_toml_value_is_read_as_toml(value: Any) -> None:
    assert parse_value(tomlkit.item(value).as_string()) == value


@given(WORDS.filter(lambda word: word not in ("true", "false", "inf", "nan")))
def test_a_bare_word_is_a_string(word: str) -> None:
    assert parse_value(word) == word


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1_000", 1000),
        ("True", "True"),
        ("2026-11-21", "2026-11-21"),
        ("10:30:00", "10:30:00"),
        ("1\nother = 2", "1\nother = 2"),
        ("runs/a b", "runs/a b"),
        ("a=b", "a=b"),
        ("", ""),
        ('{ name = "x", n = [1, 2] }', {"name": "x", "n": [1, 2]}),
    ],
)
def test_values(text: str, value: Any) -> None:
    assert parse_override(f"a.b={text}") == (("a", "b"), value)


@pytest.mark.parametrize("text", ["[a.jsonl]", '["a"', '"open', "'open", "{a}", "[1, 2"])
def test_what_opens_a_bracket_or_a_quote_must_be_toml(text: str) -> None:
    with pytest.raises(OverrideError, match=r"is not TOML .* strings inside it need quotes"):
        parse_value(text)


@pytest.mark.parametrize("text", ["word", "=3", "a.=3", ".a=3", "a..b=3", "--resume"])
def test_what_is_no_override_says_what_one_is(text: str) -> None:
    (sentence,) = apply_overrides({}, [text])
    assert sentence == (f"command line: `{text}` is not of the form section.key=value, such as train.lr=3e-4.")


@given(st.lists(KEYS, min_size=1, max_size=4), SCALARS)
def test_only_the_named_key_changes(path: list[str], value: Any) -> None:
    before = {"kept": {"x": [1, {"y": 2}]}}
    config: dict[str, Any] = copy.deepcopy(before)
    assert apply_overrides(config, [f"new.{'.'.join(path)}={tomlkit.item(value).as_string()}"]) == []
    place = config.pop("new")
    for key in path:
        (found,) = place.items()
        assert found[0] == key
        place = found[1]
    assert place == value
    assert config == before


def test_items_of_lists_and_later_overrides() -> None:
    config: dict[str, Any] = {"eval": {"prompts": [{"name": "a"}, {"name": "b"}]}}
    overrides = ["eval.prompts.1.name=c", "eval.prompts.0={name = 'd'}", "train.lr=1", "train.lr=2"]
    assert apply_overrides(config, overrides) == []
    assert config == {"eval": {"prompts": [{"name": "d"}, {"name": "c"}]}, "train": {"lr": 2}}


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("list.2=x", "list.2: list is a list of 2, which has no item `2`"),
        ("list.-1=x", "list.-1: list is a list of 2, which has no item `-1`"),
        ("list.first.x=1", "list.first.x: list is a list of 2, which has no item `first`"),
        ("value.deeper=1", "value.deeper: value is a value, not a table"),
    ],
)
def test_every_override_that_has_no_place_is_told(override: str, sentence: str) -> None:
    config: dict[str, Any] = {"list": [1, 2], "value": 3}
    assert apply_overrides(config, [override, "a.b=1", "oops"])[0] == f"command line: {sentence}."
    assert config == {"list": [1, 2], "value": 3, "a": {"b": 1}}
