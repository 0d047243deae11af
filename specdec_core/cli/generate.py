"""`specdec generate`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from specdec_core.cli.common import OverridesArgument
from specdec_core.cli.evaluate import RunArgument
from specdec_core.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from specdec_core.decode.loop import Emission
    from specdec_core.decode.text import TextStream
    from specdec_core.evaluate.tally import Tally

ACCEPTED = "green"


def generate(
    run: RunArgument,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", show_default=False, help="Read from stdin if it is not given, or is `-`."),
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            "--image",
            metavar="IMAGE",
            show_default=False,
            help="A path, a URL or a data URI, shown before the prompt; may be repeated.",
        ),
    ] = None,
    overrides: OverridesArgument = None,
    k: Annotated[
        int | None,
        typer.Option(
            "-k", "--k", min=1, help="Draft tokens per forward of the target; of a tree, its depth.", show_default=False
        ),
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens generated.", show_default=False)] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is greedy.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of sampling.", show_default=False)] = None,
    no_draft: Annotated[bool, typer.Option("--no-draft", help="The target alone, for comparison.")] = False,
) -> None:
    """Answer a prompt, with images if given, printing it as it comes.

    On a terminal the accepted draft tokens are green. What is not given is taken from the run's [eval] section.

    Example: specdec generate runs/demo "Why is the sky blue?"
    With an image: specdec generate runs/vision --image cat.jpg "What is this?"
    """
    text = sys.stdin.read() if prompt in (None, "-") else str(prompt)
    if not text.strip():
        raise UserError("the prompt is empty: give one as an argument or on stdin")

    from rich.console import Console
    from torch import Generator

    from specdec_core.algorithm.proposal import Sampling
    from specdec_core.checkpoint.open import open_for_decoding
    from specdec_core.decode.loop import decode
    from specdec_core.decode.text import TextStream
    from specdec_core.evaluate.report import short_of
    from specdec_core.evaluate.tally import Tally
    from specdec_core.registry.registry import Registry

    content = [*({"type": "image", "image": path} for path in image or ()), {"type": "text", "text": text}]
    opened = open_for_decoding(run, Registry.discover(), overrides=overrides or ())
    target, defaults = opened.target, opened.config.eval
    sampling = Sampling(
        temperature=defaults.temperature if temperature is None else temperature,
        generator=Generator(target.device).manual_seed(defaults.seed if seed is None else seed),
    )
    emissions = decode(
        target,
        None if no_draft else opened.drafter(),
        opened.encoder().encode([{"role": "user", "content": content}]),
        plan=None if no_draft else opened.plan,
        num_draft_tokens=k or defaults.num_draft_tokens,
        max_new_tokens=max_new_tokens or defaults.max_new_tokens,
        stop_token_ids=target.facts.stop_token_ids,
        sampling=sampling,
    )
    with closing(emissions):
        shown = print_stream(emissions, TextStream(target.tokenizer), Console(highlight=False))
    tally = Tally.of(shown)
    asked = k or defaults.num_draft_tokens
    drafting = "target alone" if no_draft else f"{tally.drafting}, k = {asked}{short_of(asked, tally)}"
    typer.echo(f"{summary(tally)} ({drafting}, T = {sampling.temperature:g})", err=True)


def print_stream(emissions: Iterable[Emission], stream: TextStream, console: Console) -> list[Emission]:
    """Print text as it comes, accepted draft tokens in colour where the console has any; returns the emissions."""
    shown = []
    for emission in emissions:
        shown.append(emission)
        for index, token in enumerate(emission.tokens):
            style = ACCEPTED if index < emission.accepted else None
            console.out(stream.push(token), style=style, end="")
        console.file.flush()
    console.out(stream.finish())
    return shown


def summary(tally: Tally) -> str:
    """τ and speed of the decode phase in a sentence."""
    return (
        f"τ {tally.tau:.2f}: {tally.tokens} tokens in {tally.rounds} forwards of the target after the first, "
        f"{tally.tokens_per_second:.1f} tokens/s"
    )
