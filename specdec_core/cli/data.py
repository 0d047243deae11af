"""`specdec data`: look at training data, make it, and choose a draft vocabulary for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specdec_core.cli.common import ConfigArgument, OverridesArgument, load_run, progress_bar
from specdec_core.errors import UserError

if TYPE_CHECKING:
    from rich.text import Text
    from transformers import PreTrainedTokenizerBase

    from specdec_core.config.run import TargetSection
    from specdec_core.data.media_reader import MediaReader
    from specdec_core.data.prepare import PreparedData
    from specdec_core.registry.resolve import ResolvedRun
    from specdec_core.target.base import Backbone, Target, TargetFacts

SUPERVISED = "bold green"
CONTEXT = "dim"
SMALLEST_VOCABULARY = 1024
MANY = 4

app = typer.Typer(no_args_is_help=True, help="Look at training data, make it, size its vocabulary.")


@app.command(short_help="Show samples as the draft will see them.")
def inspect(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    count: Annotated[int, typer.Option("-n", "--count", min=0, help="Samples shown.")] = 3,
) -> None:
    """Show the first samples as the draft will see them, and what becomes of the data.

    What is learned is green; where there are no colours it stands between ⟦ and ⟧.

    Example: specdec data inspect run.toml -n 1 data.max_length=1024
    """
    from rich.console import Console

    console = Console(highlight=False)
    tokenizer, _, splits = _prepare(config, overrides)
    train = splits["train"]
    for index in range(min(count, len(train.rows.dataset))):
        sample = train.rows.dataset[index]
        tokens, supervised = len(sample["ids"]), sum(sample["loss_mask"])
        console.rule(f"{train.rows.source(index)}, {tokens:,} tokens, {supervised:,} supervised")
        console.print(
            _marked(sample["ids"], sample["loss_mask"], tokenizer, bool(console.color_system)), soft_wrap=True
        )
    console.rule()
    for split, prepared in splits.items():
        console.print(f"data.{split}: {prepared.report.summary()}", soft_wrap=True)


@app.command(short_help="Show what draft vocabularies of several sizes cover.")
def vocab(config: ConfigArgument, overrides: OverridesArgument = None) -> None:
    """Show how much of the data draft vocabularies of several sizes cover.

    A draft cannot propose a token outside its vocabulary. Each vocabulary is made of the training data's most frequent
    supervised tokens; the honest figure is how much it covers of data.validation.

    Example: specdec data vocab run.toml
    """
    from rich.console import Console
    from rich.table import Table

    from specdec_core.data.vocab import VocabMap, count_supervised

    _, facts, splits = _prepare(config, overrides)
    counts = {split: count_supervised(data.rows.dataset, facts.vocab_size) for split, data in splits.items()}
    seen = int((counts["train"] > 0).sum())
    table = Table(title=f"{seen:,} of the target's {facts.vocab_size:,} tokens are supervised in data.train")
    table.add_column("draft.vocab_size", justify="right")
    for split, of_split in counts.items():
        table.add_column(f"of data.{split} ({int(of_split.sum()):,} tokens)", justify="right")
    for size in _sizes(facts.vocab_size):
        chosen = VocabMap.from_counts(counts["train"], size, always=facts.stop_token_ids)
        table.add_row(f"{size:,}", *(f"{chosen.coverage(of_split):.2%}" for of_split in counts.values()))
    Console(highlight=False).print(table)


@app.command(short_help="Let a target answer prompts, for training.")
def generate(
    prompts: Annotated[Path, typer.Argument(metavar="PROMPTS.jsonl", show_default=False, help="Questions, as JSONL.")],
    target: Annotated[str, typer.Option(help="A local directory, a .gguf file, or a Hub id.", show_default=False)],
    backbone: Annotated[str, typer.Option(metavar="NAME", help="Plugin of the target's family.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="FILE.jsonl", help="Where answers are added.", show_default=False)],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer; one cut there is marked so.")] = 192,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts answered together.")] = 64,
    dtype: Annotated[str, typer.Option(help="Type the target is loaded in: float32, bfloat16 or float16.")] = "float32",
    images: Annotated[str, typer.Option(help="strict or lenient, as data.images.")] = "strict",
) -> None:
    """Let a target answer prompts greedily, for training on its own words.

    Prompts may hold images if the target reads them. Answers that run in a loop are left out. If interrupted, the same
    command goes on where it stopped.

    Example: specdec data generate prompts.jsonl --target org/model --backbone causal-lm --out train.jsonl
    """
    from specdec_core.data.generate import generate_conversations, remaining_prompts
    from specdec_core.data.prompts import PromptReader, read_prompts
    from specdec_core.data.template import ChatTemplate

    if out.suffix == ".gz":
        raise UserError(f"--out {out}: answers are added line by line; write a .jsonl file and compress it afterwards")
    section, family = _target(target, backbone, dtype)
    media = _media_reader(family, section, images)
    records = read_prompts(prompts, media, out.parent)
    with _writing(out):
        waiting = remaining_prompts(records, out)
    done = len(records) - len(waiting)
    if not waiting:
        typer.echo(f"{out}: all {len(records):,} prompts have been answered")
        return
    loaded = _load_target(family, section)
    markers = media.processor.markers if media else {}
    template = ChatTemplate(loaded.tokenizer, loaded.facts.stop_token_ids, markers=markers)
    written = 0
    with _progress(len(records), done) as on_progress, _writing(out), out.open("a", encoding="utf-8") as file:
        answered = generate_conversations(
            waiting,
            reader=PromptReader(template, media, out.parent),
            generate=loaded.generate,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            on_progress=on_progress,
        )
        for record in answered:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
            written += 1
    lost = f"; {len(waiting) - written:,} ran in a loop or said nothing" if written < len(waiting) else ""
    typer.echo(f"{out}: {len(waiting):,} prompts gave {written:,} conversations{lost}")


def _prepare(
    config: Path, overrides: list[str] | None
) -> tuple[PreTrainedTokenizerBase, TargetFacts, dict[str, PreparedData]]:
    """The tokenizer, the target's facts and every split that the config names."""
    run: ResolvedRun = load_run(config, overrides)[0]
    if not run.config.data.train:
        raise UserError("data.train names no file; give at least one JSONL file of conversations")

    from specdec_core.data.prepare import prepare_dataset

    backbone: Backbone = run.backbone.load()
    facts = backbone.facts(run.config.target)
    tokenizer = backbone.tokenizer(run.config.target)
    media = backbone.media(run.config.target)
    data = run.config.data
    files = {"train": data.train, "validation": data.validation}
    return (
        tokenizer,
        facts,
        {
            split: prepare_dataset(data, named, tokenizer, facts.stop_token_ids, split=split, media=media)
            for split, named in files.items()
            if named
        },
    )


def _marked(ids: list[int], mask: list[bool], tokenizer: PreTrainedTokenizerBase, coloured: bool) -> Text:
    """The text of a sample, the supervised runs of it told apart."""
    from itertools import groupby

    from rich.text import Text

    text = Text()
    for supervised, run in groupby(zip(ids, mask, strict=True), key=lambda token: token[1]):
        part = _decoded([token for token, _ in run], tokenizer)
        text.append(f"⟦{part}⟧" if supervised and not coloured else part, style=SUPERVISED if supervised else CONTEXT)
    return text


def _decoded(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of `ids`; of a special token many times over, as images are, only the number."""
    from itertools import groupby

    pieces: list[str] = []
    waiting: list[int] = []
    for token, repeated in groupby(ids):
        times = len(list(repeated))
        if times < MANY or token not in tokenizer.added_tokens_decoder:
            waiting += [token] * times
            continue
        pieces += [tokenizer.decode(waiting), f"{tokenizer.decode([token])}×{times}"]
        waiting = []
    return "".join([*pieces, tokenizer.decode(waiting)])


def _sizes(vocab_size: int) -> list[int]:
    """Powers of two below the target's vocabulary, and the whole of it."""
    powers = [1 << bits for bits in range(SMALLEST_VOCABULARY.bit_length() - 1, vocab_size.bit_length())]
    return [*(size for size in powers if size < vocab_size), vocab_size]


def _target(path: str, name: str, dtype: str) -> tuple[TargetSection, Backbone]:
    """A target and its family without a run config. Raises UserError if the plugin or the type is wrong."""
    from pydantic import ValidationError

    from specdec_core.config.run import TargetSection
    from specdec_core.registry.registry import Registry
    from specdec_core.registry.resolve import load_class, options_model

    try:
        section = TargetSection(path=path, dtype=dtype)
    except ValidationError as error:
        raise UserError(f"--dtype is {dtype}; it may be float32, bfloat16 or float16") from error
    record = Registry.discover().find("backbone", name)
    assert record.spec is not None
    return section, load_class(record.spec, record.source)(options_model(record)())


def _media_reader(backbone: Backbone, section: TargetSection, images: str) -> MediaReader | None:
    """How the target reads images, by the defaults of [data]; None: it reads text only."""
    from pydantic import ValidationError

    from specdec_core.config.run import DataSection
    from specdec_core.data.prepare import media_reader

    try:
        data = DataSection.model_validate({"images": images})
    except ValidationError as error:
        raise UserError(f"--images is {images}; it may be strict or lenient") from error
    processor = backbone.media(section)
    return None if processor is None else media_reader(data, processor)


def _load_target(backbone: Backbone, section: TargetSection) -> Target:
    import torch

    return backbone.load(section, "cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}; what is in it is kept") from error


@contextmanager
def _progress(total: int, done: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr; the callback is told how many prompts have been handled beyond the first `done`."""
    from rich.console import Console

    with progress_bar("prompts", console=Console(stderr=True)) as bar:
        task = bar.add_task("prompts", total=total, completed=done)
        yield lambda handled: bar.update(task, completed=done + handled)
