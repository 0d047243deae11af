"""Make the demo's prompts from our own templates and word lists, the same ones for the same seed.

A prompt is drawn in four steps: genre (by weight), family, template, words. One that was drawn before
is drawn anew, so in a long file the genre with the fewest different prompts, Python, falls somewhat
short of its weight. The two splits use different templates (`train.toml`, `heldout.toml`) and
different functions, so a held-out prompt is a kind of request that training has seen in a form that it
has not. Prompt number i does not depend on how many are made: a longer file starts with the shorter.
"""

import argparse
import json
import random
import re
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SPLITS = ("train", "heldout")
GENRES = {"maths": 25, "python": 25, "chat": 50}
FOLLOWUP_SHARE = 0.12
ENDING_SHARE = 0.4

# {name}, {name2} (another word of the list `name`) or {label:3-15} (a number, then {label} again),
# with the article before it, which depends on the word.
SLOT = re.compile(r"(?:\b([Aa]) )?\{([a-z_]+)(\d?)(?::(\d+)-(\d+))?\}")


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((HERE / name).read_text(encoding="utf-8"))


def load_words(split: str) -> dict[str, list[str]]:
    """Return every word list by name, and the split's functions to complete as list `function`."""
    words = {name: [entry.strip() for entry in text.split(",")] for name, text in _read("words.toml").items()}
    words["function"] = [
        render_function(signature, docstring) for signature, docstring in _read("functions.toml")[split].items()
    ]
    return words


def render_function(signature: str, docstring: str) -> str:
    """Return the head of a Python function: its `def` line and its docstring."""
    if "\n" in docstring:
        docstring += "\n"
    return f"def {signature}:\n" + textwrap.indent(f'"""{docstring}"""', "    ")


def load_templates(split: str) -> dict[str, Any]:
    """Return a split's `endings` and its list `family` of template families."""
    return _read(f"{split}.toml")


class Filler:
    """Fills the slots of one conversation: a slot that recurs keeps its value."""

    def __init__(self, words: dict[str, list[str]], rng: random.Random) -> None:
        self.words = words
        self.rng = rng
        self.values: dict[str, str] = {}

    def fill(self, template: str) -> str:
        """Return `template` with a value in place of every slot."""
        return SLOT.sub(self._replace, template)

    def _replace(self, match: re.Match[str]) -> str:
        article, name, digit, low, high = match.groups()
        slot = name + digit
        if slot not in self.values:
            self.values[slot] = str(self.rng.randint(int(low), int(high))) if low else self._pick(name)
        value = self.values[slot]
        if article is None:
            return value
        return f"{article}{'n' if value[0] in 'aeiouAEIO' else ''} {value}"

    def _pick(self, name: str) -> str:
        return self.rng.choice([w for w in self.words[name] if w not in self.values.values()])


def make_prompts(split: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield `count` different prompts of `split`, a random mixture of all families."""
    rng = random.Random(f"{split}-{seed}")
    words = load_words(split)
    templates = load_templates(split)
    families: dict[str, list[dict[str, Any]]] = {genre: [] for genre in GENRES}
    for family in templates["family"]:
        families[family["genre"]].append(family)

    seen: set[str] = set()
    while len(seen) < count:
        genre = rng.choices(list(GENRES), list(GENRES.values()))[0]
        family = rng.choice(families[genre])
        filler = Filler(words, rng)
        first = filler.fill(rng.choice(family["templates"]))
        if genre == "chat" and rng.random() < ENDING_SHARE:
            first += " " + filler.fill(rng.choice(templates["endings"]))
        turns = [first]
        if rng.random() < FOLLOWUP_SHARE:
            turns.append(filler.fill(rng.choice(family["followups"])))
        if first in seen:
            continue
        yield {
            "id": f"{split}-{seed}-{len(seen):05d}",
            "family": family["name"],
            "conversations": [{"role": "user", "content": turn} for turn in turns],
        }
        seen.add(first)


def main() -> None:
    """Write the prompts that the command line asks for, one JSON object per line."""
    parser = argparse.ArgumentParser(description="Make prompts for the demo from templates.")
    parser.add_argument("--split", choices=SPLITS, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with args.out.open("w", encoding="utf-8") as file:
        for prompt in make_prompts(args.split, args.count, args.seed):
            file.write(json.dumps(prompt, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
