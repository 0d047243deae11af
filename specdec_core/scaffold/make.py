"""Templates to a package. A template's path is that of its file, with MODULE and NAME in it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from packaging.version import Version

import specdec_core
from specdec_core.checkpoint.atomic import atomic_directory
from specdec_core.errors import UserError
from specdec_core.scaffold.names import Names

SUMMARIES = {
    "algorithm": "A small network from the target's last state to its next one",
    "backbone": "Targets of one model type, loaded through transformers",
    "exporter": "The directory that `hf` writes, with a model card for the Hub",
}
KINDS = tuple(SUMMARIES)
_SUFFIX = ".jinja"


def make_package(names: Names, kind: str, out: Path, model_type: str = "") -> list[Path]:
    """Write a package for a plugin of `kind` to `out`, whole or not at all. Returns its files, relative to `out`.

    `model_type` is the transformers model type that a backbone serves. Raises UserError if `out` is there already or
    cannot be written.
    """
    if out.exists():
        raise UserError(f"{out} is there already and was left as it is; choose another place with --out")
    environment = Environment(
        undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )  # Python and TOML, not HTML
    known = {
        "kind": kind,
        "name": names.name,
        "distribution": names.distribution,
        "module": names.module,
        "cls": names.cls,
        "summary": SUMMARIES[kind],
        "core_versions": core_versions(),
        "model_type": model_type,
    }
    made = {}
    for path, text in _templates(kind):
        place = Path(path.replace("MODULE", names.module).replace("NAME", names.name.replace("-", "_")))
        if path.endswith(_SUFFIX):
            place, text = place.with_suffix(""), environment.from_string(text).render(known)
        made[place] = text
    try:
        with atomic_directory(out) as directory:
            for place, text in made.items():
                (directory / place).parent.mkdir(parents=True, exist_ok=True)
                (directory / place).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}; choose another place with --out") from error
    return sorted(made)


def core_versions() -> str:
    """Versions of specdec-core that a package made by this one works with: those of the same minor version."""
    version = Version(specdec_core.__version__)
    return f">={version.major}.{version.minor},<{version.major}.{version.minor + 1}"


def known_model_types() -> list[str]:
    """The model types with a language model that this transformers can build."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _templates(kind: str) -> Iterator[tuple[str, str]]:
    """(path, text) of each template of a kind."""
    root: Any = files("specdec_core.scaffold") / "templates"
    for folder in ("common", kind):
        yield from _walk(root / folder, "")


def _walk(folder: Traversable, path: str) -> Iterator[tuple[str, str]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _walk(entry, f"{path}{entry.name}/")
        else:
            yield path + entry.name, entry.read_text(encoding="utf-8")
