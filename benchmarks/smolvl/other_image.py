"""Does the draft see the picture? Acceptance when the draft, and it alone, is given another one.

    python benchmarks/smolvl/other_image.py RUN DIR [--prompts 60]

RUN is a run directory, DIR what `make.py` wrote. Each held-out question about one picture is decoded twice. The target
reads the right picture both times, so the text is the same. The draft reads the target's states and embeddings: of the
same tokens behind the right picture, then behind one of another colour and another shape.

Counted are the text's tokens after the first: the share of them that the draft proposed and the target accepted, for
words of colour and shape where they are first said, if the question does not name them, and for all other tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from pictures import COLORS, SHAPES

from specdec_core.algorithm.proposal import Drafter, Proposal, Sampling, Verified
from specdec_core.checkpoint.open import Opened, open_for_decoding
from specdec_core.data.batch import Batch
from specdec_core.decode.loop import decode
from specdec_core.errors import UserError
from specdec_core.registry.registry import Registry
from specdec_core.target.base import DecodeSession

WORDS = frozenset(COLORS + SHAPES)


class Misled(Drafter):
    """A drafter that is given the target's features of the same tokens behind another prompt of the same shape."""

    def __init__(self, drafter: Drafter, session: DecodeSession, prompt: Batch) -> None:
        self.drafter = drafter
        self.session = session
        self.prompt = prompt

    def begin(self, verified: Verified) -> None:
        _, features = self.session.prefill(self.prompt)
        self.drafter.begin(Verified(verified.ids, features, verified.start, verified.rotary))

    def propose(self, num_tokens: int, sampling: Sampling) -> Proposal:
        return self.drafter.propose(num_tokens, sampling)

    def accept(self, verified: Verified) -> None:
        ids = verified.ids[:-1]
        _, features = self.session.forward(ids)
        self.session.keep(range(len(ids)))
        self.drafter.accept(Verified(verified.ids, features, verified.start, verified.rotary))


@dataclass
class Count:
    """Tokens of one kind, and how many of them the draft proposed."""

    tokens: int = 0
    accepted: int = 0

    def add(self, accepted: bool) -> None:
        self.tokens += 1
        self.accepted += accepted

    def __str__(self) -> str:
        return f"{self.accepted}/{self.tokens} = {self.accepted / max(1, self.tokens):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("-k", type=int, default=4, help="Draft tokens per forward of the target; of a tree, its depth.")
    arguments = parser.parse_args()
    try:
        opened = open_for_decoding(arguments.run, Registry.discover())
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    encoder = opened.encoder()
    counts = {
        draft: {"colour and shape": Count(), "others": Count()} for draft in ("the right picture", "another picture")
    }
    rounds = dict.fromkeys(counts, 0)
    for record, other in pairs(arguments.directory / "heldout_prompts.jsonl", arguments.prompts):
        prompts = [encoder.encode(one["conversations"], arguments.directory) for one in (record, other)]
        texts = []
        for draft, found in counts.items():
            tokens, accepted, forwards = run(opened, prompts, draft == "another picture", arguments.k)
            texts.append(tokens)
            rounds[draft] += forwards
            question = record["conversations"][0]["content"][-1]["text"]
            said = first_said(opened, tokens, question)
            for index in range(1, len(tokens)):
                found["colour and shape" if index in said else "others"].add(accepted[index])
        if texts[0] != texts[1]:
            raise SystemExit(f"{record['id']}: the text changed with the draft's picture; decoding is not lossless")
    for draft, found in counts.items():
        tokens = sum(count.tokens for count in found.values())
        shares = ", ".join(f"{kind} {count}" for kind, count in found.items())
        print(f"draft given {draft}: accepted of {shares}; τ {tokens / rounds[draft]:.3f}")


def pairs(path: Path, count: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Questions about one picture, each also asked about the next picture that shares neither colour nor shape."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    records = [record for record in records if len(record["shows"]) == 1]
    for index, record in enumerate(records[:count]):
        color, shape = record["shows"][0]
        order = records[index + 1 :] + records[:index]
        other = next(one for one in order if one["shows"][0][0] != color and one["shows"][0][1] != shape)
        (image, *_), (_, *question) = (one["conversations"][0]["content"] for one in (other, record))
        yield record, {"conversations": [{"role": "user", "content": [image, *question]}]}


def run(opened: Opened, prompts: Sequence[Batch], misled: bool, k: int) -> tuple[list[int], list[bool], int]:
    """The text's tokens, which of them were draft tokens, and forwards of the target after the first."""
    prompt, other = prompts
    limit = opened.config.eval.max_new_tokens
    drafter = opened.drafter()
    if misled:
        drafter = Misled(drafter, opened.target.decode(opened.plan, prompt.ids.shape[1] + limit), other)
    emissions = list(
        decode(
            opened.target,
            drafter,
            prompt,
            plan=opened.plan,
            num_draft_tokens=k,
            max_new_tokens=limit,
            stop_token_ids=opened.target.facts.stop_token_ids,
        )
    )
    tokens = [token for emission in emissions for token in emission.tokens]
    accepted = [index < emission.accepted for emission in emissions for index in range(len(emission.tokens))]
    return tokens, accepted, len(emissions) - 1


def first_said(opened: Opened, tokens: Sequence[int], question: str) -> set[int]:
    """Where the text first says a colour or shape that the question does not name: all tokens of those words."""
    ends, text = [], ""
    for token in tokens:
        text += opened.target.tokenizer.decode([token])
        ends.append(len(text))
    known = set(re.findall(r"[a-z]+", question.lower()))
    found: set[int] = set()
    for word in re.finditer(r"[a-z]+", text.lower()):
        if word[0] in WORDS - known:
            known.add(word[0])
            found |= {i for i, end in enumerate(ends) if word.start() < end and (i == 0 or ends[i - 1] < word.end())}
    return found


if __name__ == "__main__":
    main()
