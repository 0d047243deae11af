"""The demo's prompts: reproducible, varied, and held out where they say so."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "demo" / "prompts.py"
spec = importlib.util.spec_from_file_location("demo_prompts", SCRIPT)
assert spec is not None
assert spec.loader is not None
demo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(demo)


def texts(split: str, count: int, seed: int = 0) -> list[str]:
    return [m["content"] for p in demo.make_prompts(split, count, seed) for m in p["conversations"]]


def frames(split: str) -> set[str]:
    """Every sentence frame of a split: templates, second turns and endings."""
    templates = demo.load_templates(split)
    families = templates["family"]
    return {*templates["endings"], *(t for f in families for t in [*f["templates"], *f["followups"]])}


def ngrams(lines: list[str], n: int) -> set[tuple[str, ...]]:
    words = [line.lower().split() for line in lines]
    return {tuple(line[i : i + n]) for line in words for i in range(len(line) - n + 1)}


def test_the_same_seed_gives_the_same_prompts_and_a_longer_file_starts_with_the_shorter():
    prompts = list(demo.make_prompts("train", 200, 3))
    assert prompts == list(demo.make_prompts("train", 300, 3))[:200]
    assert prompts != list(demo.make_prompts("train", 200, 4))


def test_prompts_are_distinct_and_have_distinct_ids():
    prompts = list(demo.make_prompts("train", 3000, 0))
    assert len({p["id"] for p in prompts}) == len(prompts)
    assert len({p["conversations"][0]["content"] for p in prompts}) == len(prompts)


@pytest.mark.parametrize("split", demo.SPLITS)
def test_every_template_can_be_filled(split: str):
    words = demo.load_words(split)
    for frame in frames(split):
        for seed in range(20):
            text = demo.Filler(words, demo.random.Random(seed)).fill(frame)
            assert not demo.SLOT.search(text)


def test_the_article_agrees_with_the_word():
    words = {"job": ["architect"], "city": ["Lisbon"]}
    filler = demo.Filler(words, demo.random.Random(0))
    assert filler.fill("A {job} in a {city}; {n:7-7} times {n}") == "An architect in a Lisbon; 7 times 7"


def test_about_a_quarter_is_maths_a_quarter_python_and_an_eighth_has_two_turns():
    prompts = list(demo.make_prompts("train", 2000, 0))
    genre = {family["name"]: family["genre"] for family in demo.load_templates("train")["family"]}
    assert set(genre) == {p["family"] for p in prompts}
    shares = Counter(genre[p["family"]] for p in prompts)
    assert shares["maths"] / 2000 == pytest.approx(0.25, abs=0.05)
    assert shares["python"] / 2000 == pytest.approx(0.25, abs=0.05)
    assert sum(len(p["conversations"]) == 2 for p in prompts) / 2000 == pytest.approx(0.12, abs=0.03)


def test_the_splits_share_no_frame_no_family_and_no_function():
    assert len(frames("train")) >= 100
    assert len(frames("heldout")) >= 30
    assert not frames("train") & frames("heldout")
    families = [{f["name"] for f in demo.load_templates(split)["family"]} for split in demo.SPLITS]
    assert families[0].isdisjoint(families[1])
    functions = [set(demo.load_words(split)["function"]) for split in demo.SPLITS]
    assert functions[0].isdisjoint(functions[1])


def test_the_splits_share_no_eight_words_in_a_row():
    assert not ngrams(texts("train", 4000), 8) & ngrams(texts("heldout", 200), 8)


def test_the_command_writes_one_prompt_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "prompts.jsonl"
    monkeypatch.setattr(sys, "argv", ["prompts.py", "--split", "heldout", "--count", "5", "--out", str(out)])
    demo.main()
    lines = out.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == list(demo.make_prompts("heldout", 5, 0))
