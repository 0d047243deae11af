"""One TOML file and overrides to a `RunConfig`, with every error at once.

Relative paths in a config are relative to the current working directory, not to the config file.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from specdec_core.config.overrides import apply_overrides
from specdec_core.config.problems import Problem, closest, validation_problems
from specdec_core.config.run import PLUGIN_SECTIONS, PluginSection, RunConfig
from specdec_core.errors import UserError, UserErrors


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file's content. Raises UserError, with line and column where the syntax is wrong."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        # Without their common suffix, or any two short names would look alike.
        similar = closest(path.stem, [other.stem for other in path.parent.glob("*.toml")])
        hint = f' Did you mean "{similar}.toml"?' if similar else ""
        raise UserError(f"{path}: no such file.{hint}") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a directory; give a TOML file in it.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a text file in UTF-8, so not TOML.") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}.") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message, line, column = _syntax_error(str(error), text)
        raise UserError(f"{path}:{line}:{column}: not valid TOML: {message}.") from error


def _syntax_error(message: str, text: str) -> tuple[str, int, int]:
    match = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", message, re.DOTALL)
    if match and match[2]:
        return match[1], int(match[2]), int(match[3])
    lines = text.splitlines() or [""]
    return (match[1] if match else message), len(lines), len(lines[-1]) + 1


def read_config(path: Path, overrides: Iterable[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """The file with the overrides set in it, not yet validated, and a sentence for each that could not be set."""
    raw = read_toml(path)
    for section in PLUGIN_SECTIONS:
        if isinstance(raw.get(section), str):
            raw[section] = {"name": raw[section]}
    absent = [section for section in PLUGIN_SECTIONS if section not in raw]
    problems = apply_overrides(raw, overrides)
    for section in absent:
        # `engine.device=cpu` alone is meant for the default engine.
        default = RunConfig.model_fields[section].default
        if isinstance(raw.get(section), dict) and isinstance(default, PluginSection):
            raw[section].setdefault("name", default.name)
    return raw, problems


def validate_config(raw: dict[str, Any]) -> tuple[RunConfig | None, list[Problem]]:
    """The core's own keys, validated; None if there are problems. Plugins' keys are left to the plugins."""
    try:
        return RunConfig.model_validate(raw), []
    except ValidationError as error:
        return None, validation_problems(error, RunConfig, raw)


def problem_report(path: Path, problems: Iterable[Problem], messages: Iterable[str] = ()) -> UserErrors:
    """`messages`, then the problems with the file that they are in, as one error."""
    return UserErrors([*messages, *(f"{path}: {problem}" for problem in problems)])
