"""Mistakes that the contract of an exporter must catch in a copy of the core's own: see test_planted_bugs.py."""

from __future__ import annotations

from planting import bug

CLASS = "TestHF"
HF, BASE, ATOMIC = "specdec_core/export/hf.py", "specdec_core/export/base.py", "specdec_core/checkpoint/atomic.py"
PLACE = "specdec_core/export/directory.py"

BUGS = [
    bug("tensors of other types dropped", "written-whole", CLASS,
        HF, "for n, t in exported.tensors.items()}", "for n, t in exported.tensors.items() if t.is_floating_point()}"),
    bug("tensors cast", "written-whole", CLASS, HF, 't.detach().to("cpu", copy=True)', "t.detach().float().clone()"),
    bug("written in place", "all-or-nothing", CLASS,
        ATOMIC, 'temporary = final.with_name(f".{final.name}{TEMPORARY}")', "temporary = final"),
    bug("half a draft left behind", "all-or-nothing", CLASS,
        ATOMIC, "        shutil.rmtree(temporary, ignore_errors=True)\n        raise", "        raise"),
    bug("a stranger's files overwritten", "all-or-nothing", CLASS,
        PLACE, "if out.exists() and not", "if False and not"),
    bug("values that are not finite exported", "all-or-nothing", CLASS,
        HF, "        check_finite(exported.tensors)\n", ""),
    bug("an error without a sentence", "all-or-nothing", CLASS,
        PLACE, "if isinstance(error, OSError):", "if isinstance(error, TimeoutError):"),
    bug("step of the weights lost", "provenance", CLASS,
        BASE, "return asdict(self)", 'return {**asdict(self), "step": None}'),
]  # fmt: skip
