"""An evaluation as a table for people and as JSON for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from specdec_core.evaluate.compare import TIE
from specdec_core.evaluate.evaluator import ALONE, Evaluation, Method
from specdec_core.evaluate.overlap import Overlap
from specdec_core.evaluate.run import DRAFT, Measured
from specdec_core.evaluate.tally import Tally


def render(measured: Measured) -> RenderableType:
    """The report for a terminal: conditions, methods, prompt sets, and last the verdict."""
    evaluation, overlaps = measured.evaluation, measured.overlaps
    parts: list[RenderableType] = [Text(conditions_line(measured), style="dim"), "", _methods_table(evaluation), ""]
    if len(evaluation.conditions.prompts) > 1:
        parts += [_categories_table(evaluation), ""]
    verdict = [*figures_lines(evaluation), outputs_line(evaluation)]
    verdict += [overlap_line(overlaps)] if overlaps else []
    return Group(*parts, Panel(Text("\n".join(verdict)), title=Text(headline(evaluation), style="bold"), expand=False))


def headline(evaluation: Evaluation) -> str:
    """The result in a line."""
    speedup = evaluation.speedup(evaluation.best(DRAFT))
    return f"With the draft: {speedup:.2f}× the target's own speed" + ("" if speedup >= 1 else " (SLOWER)")


def short_of(k: int, tally: Tally) -> str:
    """` (3 proposed at most)` where a drafter never came to k."""
    reached = len(tally.proposed)
    return f" ({reached} proposed at most)" if reached < k else ""


def figures_lines(evaluation: Evaluation) -> list[str]:
    """Speed and acceptance length of the draft and of the baselines, each at its fastest k."""
    best = evaluation.best(DRAFT)
    draft, alone = evaluation.tally(best), evaluation.tally(ALONE)
    ks = sorted({method.num_draft_tokens for method in evaluation.methods if method.name == DRAFT})
    among = f", the fastest of {', '.join(map(str, ks))}" if len(ks) > 1 else ""
    drafted = "levels of draft tokens" if draft.is_tree else "draft tokens"
    lines = [
        f"Speed: {alone.tokens_per_second:.1f} → {draft.tokens_per_second:.1f} tokens/s with k = "
        f"{best.num_draft_tokens} {drafted}{short_of(best.num_draft_tokens, draft)}{among}.",
        f"τ = {draft.tau:.2f} tokens per forward of the target.",
    ]
    for name in dict.fromkeys(method.name for method in evaluation.methods):
        if name not in (ALONE.name, DRAFT):
            method = evaluation.best(name)
            tally = evaluation.tally(method)
            lines.append(
                f"{name[0].upper()}{name[1:]}, for comparison: {evaluation.speedup(method):.2f}×, "
                f"τ = {tally.tau:.2f} ({tally.drafting}, k = {method.num_draft_tokens})."
            )
    return lines


def outputs_line(evaluation: Evaluation) -> str:
    """Whether what was written is the target's own."""
    verdicts = Counter(r.comparison.verdict for r in evaluation.results if r.comparison)
    total = verdicts.total()
    if not total:
        return "Outputs were sampled and so not compared token by token."
    if verdicts["identical"] == total:
        return f"Outputs: all {total} are identical to the target's own."
    text = f"Outputs: {verdicts['identical']} of {total} are identical to the target's own"
    if verdicts["tie"]:
        text += f", {verdicts['tie']} up to a tie (logits less than {TIE:g} apart)"
    if verdicts["different"]:
        text += f", {verdicts['different']} DIFFER"
        if evaluation.conditions.dtype != "float32":
            text += f" ({evaluation.conditions.dtype} rounds; only float32 shows whether decoding is lossless)"
    return text + "."


def overlap_line(overlaps: Mapping[str, Overlap]) -> str:
    """How much of prompts and outputs the draft has seen in training."""
    shares = ", ".join(f"{name} {f'{o.share:.1%}' if o.total else 'too short to tell'}" for name, o in overlaps.items())
    n = next(iter(overlaps.values())).n
    return f"{n}-word sequences that stand in the training text too: {shares}."


def conditions_line(measured: Measured) -> str:
    """Under which conditions the figures were taken."""
    evaluation = measured.evaluation
    c = evaluation.conditions
    draft = "" if measured.draft_dtype in (None, c.dtype) else f", the draft {measured.draft_dtype}"
    trained = "" if c.target_step is None else f" as trained by this run, step {c.target_step}"
    prompts = ", ".join(f"{name} {count}" for name, count in c.prompts.items())
    best = evaluation.best(DRAFT)
    return (
        f"{c.target}{trained}; {evaluation.tally(best).drafting}, T = {c.temperature:g}, "
        f"at most {c.max_new_tokens} new tokens; {sum(c.prompts.values())} prompts ({prompts}); "
        f"{c.dtype}{draft}, {c.device}, {c.threads} threads, torch {c.torch}. τ and speed are of the decode phase: "
        "reading the prompt and the first token are left out; with them the draft's speed-up is "
        f"{_with_prefill(evaluation, best):.2f}×."
    )


def as_json(measured: Measured) -> dict[str, Any]:
    """Everything: conditions, figures by method and category, and each prompt's own."""
    evaluation, overlaps = measured.evaluation, measured.overlaps
    return {
        "conditions": {
            "drafting": evaluation.tally(evaluation.best(DRAFT)).drafting,
            "draft_dtype": measured.draft_dtype,
            **asdict(evaluation.conditions),
        },
        "best_num_draft_tokens": evaluation.best(DRAFT).num_draft_tokens,
        "methods": [
            {
                **_identity(method),
                **_figures(evaluation, method),
                "outputs": dict(Counter(r.comparison.verdict for r in evaluation.of(method) if r.comparison)),
                "categories": {name: _figures(evaluation, method, name) for name in evaluation.conditions.prompts},
            }
            for method in evaluation.methods
        ],
        "overlap": {name: {**asdict(o), "share": o.share} for name, o in overlaps.items()},
        "results": [
            {
                **_identity(result.method),
                "prompt": result.prompt.id,
                "category": result.prompt.category,
                "tokens": list(result.tokens),
                "tally": asdict(result.tally),
                "comparison": asdict(result.comparison) if result.comparison else None,
            }
            for result in evaluation.results
        ],
    }


def _identity(method: Method) -> dict[str, Any]:
    return {"method": method.name, "num_draft_tokens": method.num_draft_tokens}


def _figures(evaluation: Evaluation, method: Method, category: str | None = None) -> dict[str, Any]:
    tally = evaluation.tally(method, category)
    return {
        "drafting": tally.drafting,
        "tau": tally.tau,
        "acceptance": list(tally.acceptance),
        "tokens_per_second": tally.tokens_per_second,
        "speedup": evaluation.speedup(method, category),
        "tokens_per_second_with_prefill": tally.tokens_per_second_with_prefill,
        "speedup_with_prefill": _with_prefill(evaluation, method, category),
        "tally": asdict(tally),
    }


def _with_prefill(evaluation: Evaluation, method: Method, category: str | None = None) -> float:
    alone = evaluation.tally(ALONE, category).tokens_per_second_with_prefill
    return evaluation.tally(method, category).tokens_per_second_with_prefill / alone if alone else 0.0


def _methods_table(evaluation: Evaluation) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for title in ("k", "τ", "tokens/s", "speed-up"):
        table.add_column(title, justify="right")
    table.add_column("accepted, by position")
    table.add_column("outputs")
    fastest = {evaluation.best(name) for name in {method.name for method in evaluation.methods}} - {ALONE}
    for method in evaluation.methods:
        tally = evaluation.tally(method)
        table.add_row(
            method.name,
            str(method.num_draft_tokens or ""),
            f"{tally.tau:.2f}",
            f"{tally.tokens_per_second:.1f}",
            f"{evaluation.speedup(method):.2f}×",
            " ".join(f"{share:.0%}" for share in tally.acceptance),
            _outputs(evaluation, method),
            style="bold" if method in fastest else "",
        )
    return table


def _categories_table(evaluation: Evaluation) -> Table:
    """The fastest k of each drafter, by prompt set."""
    names = list(dict.fromkeys(method.name for method in evaluation.methods[1:]))
    best = [evaluation.best(name) for name in names]
    table = Table(box=None, pad_edge=False)
    table.add_column("prompts")
    for method in best:
        table.add_column(f"{method.name} (k = {method.num_draft_tokens}): τ", justify="right")
        table.add_column("speed-up", justify="right")
    for category, count in evaluation.conditions.prompts.items():
        cells = []
        for method in best:
            cells += [f"{evaluation.tally(method, category).tau:.2f}", f"{evaluation.speedup(method, category):.2f}×"]
        table.add_row(f"{category} ({count})", *cells)
    return table


def _outputs(evaluation: Evaluation, method: Method) -> str:
    verdicts = Counter(r.comparison.verdict for r in evaluation.of(method) if r.comparison)
    words = (
        (verdicts["identical"], "identical"),
        (verdicts["tie"], "tied"),
        (verdicts["different"], "DIFFERENT"),
    )
    return ", ".join(f"{count} {word}" for count, word in words if count)
