"""What a plugin says of itself: pure data, so that listing plugins loads no implementation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

API_VERSION = 1

Kind = Literal["algorithm", "backbone", "engine", "exporter", "prompts", "cache", "logger"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class PluginSpec:
    """One thing that a distribution provides.

    `implementation` and `config` are `"package.module:Attribute"` strings. The implementation is loaded
    when a run names it and is called with one argument: the validated instance of `config`. The module of
    `config` holds a pydantic model and must not import torch. Without `config` the plugin takes no options.
    """

    kind: Kind
    name: str
    summary: str
    implementation: str
    config: str | None = None
    api_version: int = API_VERSION
