"""The pack `hub-vqa`."""

from __future__ import annotations

import ast
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import datasets

from specdec_core.errors import UserError
from specdec_core.evaluate.prompts import Prompt, PromptPack, spread
from specdec_vqa.config import PLACEHOLDER, HubVqaConfig

IN_THE_TEXT = re.compile(r"<image (\d+)>")
"""How questions speak of their images by number, from 1."""


class HubVqaPrompts(PromptPack):
    """A row a prompt. An image stands where the question first says <image 1> and so on; the others stand before it."""

    options: HubVqaConfig

    def __iter__(self) -> Iterator[Prompt]:
        """The prompts in the dataset's order.

        Raises UserError if the dataset cannot be loaded, lacks a column, or if a row shows no image.
        """
        options = self.options
        rows = self._load()
        self._check_columns(rows.column_names)
        for name in options.images:
            rows = _undecoded(rows, name)
        category = options.category or options.preset or Path(options.dataset).name
        chosen = spread(range(len(rows)), options.limit)
        for number, row in zip(chosen, rows.select(chosen), strict=True):
            name = str(number if options.id is None else row[options.id])
            content = _content(self._text(row, name), [_sources(row[column]) for column in options.images])
            if all(part["type"] == "text" for part in content):
                raise UserError(f"prompts hub-vqa: row {number} of {options.dataset} holds no image; leave it out")
            yield Prompt(name, category, ({"role": "user", "content": content},))

    def _load(self) -> datasets.Dataset:
        options = self.options
        path = Path(options.dataset)
        try:
            if (path / "state.json").is_file():
                return datasets.load_from_disk(path)
            if (path / "dataset_dict.json").is_file():
                return datasets.load_from_disk(path)[options.split]
            return datasets.load_dataset(
                options.dataset, name=options.subset, split=options.split, revision=options.revision
            )
        except Exception as error:  # the Hub, the network, a missing subset or split: datasets has a type for each
            said = (str(error) or type(error).__name__).strip().splitlines()[0]
            raise UserError(f"prompts hub-vqa: cannot load {options.dataset}: {said}") from error

    def _check_columns(self, found: Sequence[str]) -> None:
        options = self.options
        wanted = [*options.images, *filter(None, (options.question, options.choices, options.id))]
        if missing := [name for name in wanted if name not in found]:
            raise UserError(
                f'prompts hub-vqa: {options.dataset} has no column "{missing[0]}" but {", ".join(found)}; '
                "name the columns with the options question, images, choices and id"
            )

    def _text(self, row: Mapping[str, Any], name: str) -> str:
        options = self.options
        question = "" if options.question is None else str(row[options.question])
        if options.choices is not None:
            given = _choices(row[options.choices], f"{name} of {options.dataset}")
            question += "".join(f"\n{letter}. {text}" for letter, text in zip(ascii_uppercase, given, strict=False))
        return options.template.replace(PLACEHOLDER, question)


def _undecoded(rows: datasets.Dataset, column: str) -> datasets.Dataset:
    """With the images of a column as the bytes that the dataset holds; a column of paths or URLs as it is."""
    bytes_alone = datasets.Image(decode=False)
    feature = rows.features[column]
    if isinstance(feature, datasets.Image):
        return rows.cast_column(column, bytes_alone)
    if isinstance(getattr(feature, "feature", None), datasets.Image):
        return rows.cast_column(column, datasets.List(bytes_alone))
    return rows


def _sources(value: Any) -> list[str]:
    """The images of a row's field as paths, URLs or data URIs."""
    if value is None:
        return []
    if isinstance(value, list):
        return [source for item in value for source in _sources(item)]
    if isinstance(value, str):
        return [value]
    if value.get("bytes") is None:
        return [value["path"]]
    return [f"data:;base64,{b64encode(value['bytes']).decode()}"]


def _content(text: str, images: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """The parts of a message: text, and `images` by number at their place in it."""

    def shown(sources: Sequence[str]) -> list[dict[str, str]]:
        return [{"type": "image", "image": source} for source in sources]

    left = dict(enumerate(images, start=1))
    parts: list[dict[str, str]] = []
    start = 0
    for mention in IN_THE_TEXT.finditer(text):
        if sources := left.pop(int(mention[1]), ()):
            parts += [{"type": "text", "text": text[start : mention.start()]}, *shown(sources)]
            start = mention.end()
    unnamed = [part for sources in left.values() for part in shown(sources)]
    return [part for part in [*unnamed, *parts, {"type": "text", "text": text[start:]}] if part.get("text") != ""]


def _choices(value: Any, row: str) -> Sequence[Any]:
    """A list, also one that is written as Python writes lists."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            raise UserError(f"prompts hub-vqa: the choices of row {row} are no list: {value[:60]}") from error
    return value or []
