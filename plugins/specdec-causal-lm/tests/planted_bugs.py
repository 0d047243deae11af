"""Mistakes that the contract must catch in a copy of this plugin, and of the core's part of it.

Name, promise, contract class, edits; see tests/test_planted_bugs.py.
"""

from __future__ import annotations

from planting import bug

PLAIN, WINDOWS, SCALED = "TestLlama", "TestWindowsAndTiedHead", "TestScaledEmbeddingsAndCappedLogits"
BACKBONE, CONFIG = (f"specdec_causal_lm/{name}.py" for name in ("backbone", "config"))
TARGET, FACTS, SHARED, LOAD, OPTIONS, SESSION, ATTENTION = (
    f"specdec_core/target/{name}.py"
    for name in ("hf", "hf_facts", "hf_backbone", "hf_load", "hf_options", "session", "attention")
)
# The backbone compares itself with the model when it loads; what is to be seen here is what the contract sees.
UNCHECKED = (BACKBONE, "        loaded.check()\n", "")

BUGS = [
    bug("backbone: torch imported with the options", "light-imports", PLAIN,
        CONFIG, "from pydantic import", "import torch\nfrom pydantic import"),
    bug("backbone: unknown keys accepted", "options", PLAIN, OPTIONS, 'extra="forbid"', 'extra="ignore"'),
    # Facts.
    bug("facts that need the weights", "facts", PLAIN,
        SHARED, "return self.read_facts(target, config, load_generation_config(where), self.tokenizer(target))",
        'return self.load(target, "cpu").facts'),
    bug("head size derived from the hidden size", "facts", SCALED,
        FACTS, '_first(text, "head_dim") or ', ""),
    bug("type of the target ignored", "facts", PLAIN,
        LOAD, "dtype=getattr(torch, target.dtype)", "dtype=torch.float32"),
    bug("stop token of the chat template lost", "tokenizer", PLAIN,
        FACTS, "end = turn_end(tokenizer)", "end = None"),
    bug("a missing target without a sentence", "refusals", PLAIN,
        LOAD, 'return UserError(f"target.path = {target.path!r}: there is no such directory or file',
        'return OSError(f"target.path = {target.path!r}: there is no such directory or file'),
    # Weights.
    bug("weights that take part in autograd", "frozen-target", PLAIN,
        TARGET, "model.requires_grad_(False).eval()", "model.eval()"),
    bug("rows that are no copies", "frozen-target", PLAIN,
        TARGET, "weight.detach().clone() if ids is None", "weight.detach() if ids is None"),
    bug("layers that are no copies", "frozen-target", PLAIN,
        TARGET, "{name: tensor.detach().clone() for", "{name: tensor.detach() for"),
    bug("rows in ascending order", "embeddings", PLAIN,
        TARGET, "else weight.detach()[ids]", "else weight.detach()[ids.sort().values]"),
    bug("scale of the embeddings forgotten", "embeddings", SCALED,
        TARGET, "self.embedding()(ids)", "torch.nn.functional.embedding(ids, self.embedding().weight)"),
    # Capture.
    bug("capture off by one layer", "capture", PLAIN,
        TARGET, "self.norm() if layer == count else layers[layer] for",
        "self.norm() if layer == count else layers[max(layer - 1, 0)] for"),
    bug("final norm missing", "capture", PLAIN,
        TARGET, "last_hidden=last_hidden if plan.last_hidden", "last_hidden=states[count] if plan.last_hidden",
        *UNCHECKED),
    bug("last layer captured after the norm", "capture", PLAIN,
        TARGET, "hidden={layer: states[layer] for",
        "hidden={layer: last_hidden if layer == count else states[layer] for",
        *UNCHECKED),
    bug("documents of a row run together", "capture", PLAIN,
        ATTENTION, "values, lengths = torch.unique_consecutive(row, return_counts=True)",
        "values, lengths = torch.unique_consecutive(row.clamp(max=0), return_counts=True)", *UNCHECKED),
    bug("rows of a batch mixed up", "capture", PLAIN,
        ATTENTION, "part = (slice(row, row + 1), slice(None)", "part = (slice(0, 1), slice(None)"),
    bug("window one token too wide", "capture", WINDOWS,
        ATTENTION, "ones.triu(1 - self.window)", "ones.triu(-self.window)"),
    bug("window of a layer forgotten", "capture", WINDOWS,
        ATTENTION, "_DocumentMask(current, local_size)", "_DocumentMask(current, None)"),
    bug("forward ended too early", "capture-plan", PLAIN,
        TARGET, "not (cached or plan.last_hidden or plan.argmax)", "not (cached or plan.last_hidden)"),
    bug("more captured than planned", "capture-plan", PLAIN,
        TARGET, "last_hidden=last_hidden if plan.last_hidden else None", "last_hidden=last_hidden"),
    bug("logits not capped in the teacher", "teacher", SCALED,
        TARGET, "head.weight, head.bias, self.finish_logits, rows)", "head.weight, head.bias, rows=rows)"),
    bug("teacher of sorted rows", "teacher", PLAIN,
        "specdec_core/target/streaming.py", "if not bool((ascending == rows).all()):", "if False:"),
    bug("padding of prompts attended", "generation", PLAIN,
        TARGET, "mask = [[0] * gap +", "mask = [[1] * gap +"),
    # Sessions.
    bug("positions of a continuation from 0", "sessions", PLAIN,
        TARGET, "positions = start + (torch", "positions = 0 * start + (torch"),
    bug("capacity not checked", "sessions", PLAIN,
        SESSION, "> self.capacity:", "> 10**9:"),
    bug("branches of a tree see each other", "trees", PLAIN,
        ATTENTION, "        mask[..., past:] &= current.ancestors\n", ""),
    bug("positions of a tree as of a chain", "trees", PLAIN,
        TARGET, "if depths is None else depths)", "if True else depths)"),
    bug("keep takes the wrong slots", "roll-back", PLAIN,
        SESSION, "slots = start + torch.tensor(path, device=self.keys.device)",
        "slots = start + torch.arange(len(path), device=self.keys.device)"),
    bug("keep one slot late", "roll-back", PLAIN,
        SESSION, "slots = start + torch.tensor(path,", "slots = start - 1 + torch.tensor(path,"),
    bug("keys of rejected tokens stay", "roll-back", PLAIN,
        SESSION, "        self.length = start + len(path)\n", ""),
]  # fmt: skip
