"""What the contracts promise, and how a test says which promise broke.

Each promise has a section of its name in docs/contracts.md that says why it matters and how it is tested.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

PAGE = "docs/contracts.md"

PROMISES = {
    # Of every plugin.
    "light-imports": "The module of the entry point and that of the options import no torch.",
    "options": "Options validate by default, survive JSON, cannot be changed and refuse unknown keys.",
    # Of an algorithm that trains.
    "planned-captures": "The step and the drafter read what the capture plan names and nothing else.",
    "target-untouched": "The target is reached through its methods only, and nothing of it is changed or trained.",
    "target-learns": "A target that learns gets a gradient at each of its weights, and comes to say what it learns.",
    "rebuilt-from-config": "The draft's config is JSON, and it is all that is needed to build the draft again.",
    "seeded": "The same seed gives the same draft and the same step, whatever the algorithm did before.",
    "loss-falls": "On one batch, repeated, the loss falls.",
    "learns-to-guess": "A draft that learns a text comes to guess it, by its own metrics.",
    "gradients": "Every trained parameter is in one parameter group and gets a gradient.",
    "own-parameters": "No parameter has two names: each part of the draft has its own.",
    "masked-tokens": "A token that is not to be learned changes neither loss nor gradients nor metrics.",
    "learned-tokens": "The last token to be learned is learned.",
    "padding": "Padding changes nothing.",
    "documents": "Documents packed into a row are worth the same as each in a row of its own.",
    "micro-batches": "Any split of a batch into micro-batches gives the same loss and the same gradients.",
    "denominators": "The loss is a sum divided by the denominators that it is given.",
    "metrics": "A metric is a sum and a count that add up over micro-batches; an accuracy is against the target.",
    "mixed-types": "Draft and target may be of different floating-point types.",
    "checkpoints": "After a checkpoint is saved and loaded, training goes on as if it had not stopped.",
    "same-step": "A faster way to compute the step computes the same step.",
    # Of proposing.
    "training-is-decoding": "The drafter proposes what the training step computes on the same text.",
    "proposals": "A proposal holds at most the tokens asked for, in target ids that the draft can say.",
    "sampling": "A proposal's tokens are drawn from the distributions that come with it, by the generator given.",
    "stale-guesses": "After accept, a drafter is as if it had begun on the longer text.",
    "lossless": "Greedy decoding with the drafter writes what the target alone writes.",
    "stop-tokens": "A draft that is taught to stop proposes to stop.",
    # Of export.
    "export": "What is exported can be loaded again and holds each trained tensor.",
    # Of a backbone.
    "facts": "The facts are those of the model, and are read without its weights.",
    "tokenizer": "The tokenizer is the target's, and the token that ends an answer is a stop token.",
    "frozen-target": "No parameter of the target takes part in autograd, and what is handed out is a copy.",
    "capture": "What is captured is what the model itself computes for each document.",
    "capture-plan": "A capture holds what the plan names, whatever else is captured with it.",
    "teacher": "The teacher is the model's own distribution.",
    "embeddings": "embed gives what the first decoder layer reads.",
    "sessions": "A decode session computes what a capture of the same tokens computes.",
    "trees": "In a tree each token sees its own path.",
    "roll-back": "After keep, a session is as if the other tokens had never been read.",
    "generation": "generate gives the greedy text of each prompt, its stop token included.",
    "media": "Images and videos become what the family's own processor makes of them.",
    "positions": "Rotary positions are those that the model itself counts.",
    "images": "Captures of texts with images are the model's own, and an image changes its own text alone.",
    "refusals": "A target that cannot be used is refused in one sentence.",
    # Of an exporter.
    "written-whole": "What is written reads back the same, tensor for tensor.",
    "all-or-nothing": "A draft stands there whole or not at all, and a stranger's files are left alone.",
    "provenance": "Beside the draft stands where it comes from.",
}

Test = TypeVar("Test", bound=Callable[..., None])


class BrokenPromise(AssertionError):
    """A plugin does not keep a promise of its contract."""


def promise(name: str) -> Callable[[Test], Test]:
    """Mark a contract's test as that of a promise: whatever it raises says which promise broke and where to read it.

    A contract that names the promise in `waived` skips the test with the reason given there.
    """
    sentence = PROMISES[name]

    def mark(test: Test) -> Test:
        @functools.wraps(test)
        def checked(self: Any, *args: Any, **kwargs: Any) -> None:
            __tracebackhide__ = True
            if name in self.waived:
                pytest.skip(f"{name} is waived: {self.waived[name]}")
            try:
                test(self, *args, **kwargs)
            except (Exception, pytest.fail.Exception) as error:
                plain = isinstance(error, pytest.fail.Exception) or type(error) is AssertionError
                what = str(error) if plain else f"{type(error).__name__}: {error}"
                raise BrokenPromise(
                    f"{name} is broken by {self.kind} {self.name}.\n{sentence}\n{what}\nSee {PAGE}#{name}"
                ) from error

        checked.promise = name  # type: ignore[attr-defined]
        return checked  # type: ignore[return-value]

    return mark
