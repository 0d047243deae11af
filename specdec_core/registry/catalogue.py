"""`registry.toml`: what plugins exist, which are allowed, and what wins a clash. Layered, later files win."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from pydantic import AfterValidator, Field, ValidationError

from specdec_core.config.load import problem_report, read_toml
from specdec_core.config.problems import validation_problems
from specdec_core.config.run import Section
from specdec_core.errors import UserError
from specdec_core.registry import ENVIRONMENT_VARIABLE
from specdec_core.registry.specs import API_VERSION, KINDS

FILE_NAME = "registry.toml"
# A link to the file at the top of the repository, a copy of it where the package is installed.
SHIPPED = Path(__file__).with_name(FILE_NAME).resolve()


def _distribution(name: str) -> str:
    return canonicalize_name(name)


def _version_range(text: str) -> str:
    try:
        SpecifierSet(text)
    except InvalidSpecifier as error:
        raise ValueError(f"allowed: a version range such as >=0.1,<0.2 ({error})") from error
    return text


def _provided(text: str) -> str:
    kind, dot, name = text.partition(".")
    if not dot or not name or kind not in KINDS:
        raise ValueError(f"allowed: kind.name, where kind is one of {', '.join(KINDS)}")
    return text


def _kind(text: str) -> str:
    if text not in KINDS:
        raise ValueError(f"allowed: one of {', '.join(KINDS)}")
    return text


KindName = Annotated[str, AfterValidator(_kind)]
Distribution = Annotated[str, AfterValidator(_distribution)]


class CatalogueEntry(Section):
    """A distribution that exists, installed or not."""

    version: Annotated[str, AfterValidator(_version_range)] = Field("", description="Versions known to work.")
    api_version: int = Field(API_VERSION, description="The plugin API that these versions speak.")
    provides: tuple[Annotated[str, AfterValidator(_provided)], ...] = Field(description="`kind.name` of each plugin.")
    summary: str = Field("", description="One line.")

    def admits(self, version: str) -> bool:
        """Whether a version lies in the range; a pre-release does if the numbers fit."""
        return SpecifierSet(self.version).contains(version, prereleases=True)

    @property
    def exact(self) -> bool:
        """Whether the range names one version."""
        return any(clause.operator == "==" and "*" not in clause.version for clause in SpecifierSet(self.version))


class Policy(Section):
    """Which installed distributions may be used; decided before any of their code is imported."""

    mode: Literal["open", "listed", "locked"] = Field("open", description="open, listed or locked.")
    disabled: tuple[str, ...] = Field((), description="Distributions, entry points or names never used.")
    lock: Path | None = Field(None, description="A run's lock file, for mode locked; relative to the registry file.")


class Catalogue(Section):
    """All layers, merged."""

    policy: Policy = Policy()
    plugins: Mapping[Distribution, CatalogueEntry] = Field(default_factory=dict)
    prefer: Mapping[KindName, Mapping[str, Distribution]] = Field(default_factory=dict)
    alias: Mapping[KindName, Mapping[str, str]] = Field(default_factory=dict)

    def provided(self) -> Iterator[tuple[str, str, str]]:
        """(kind, name, distribution) of everything catalogued."""
        for distribution, entry in self.plugins.items():
            for item in entry.provides:
                kind, _, name = item.partition(".")
                yield kind, name, distribution

    def is_disabled(self, *names: str) -> bool:
        """Whether any of these names of one plugin is disabled, spelt in any way that packaging treats as equal."""
        disabled = {canonicalize_name(name) for name in self.policy.disabled}
        return any(canonicalize_name(name) in disabled for name in names)


def user_file() -> Path:
    """Where the user's own registry.toml is read from."""
    return platformdirs.user_config_path("specdec") / FILE_NAME


def layers(explicit: Path | None = None) -> list[Path]:
    """The files to read, first to last, each once. `explicit` or $SPECDEC_REGISTRY must exist; the others may."""
    if explicit is None and (variable := os.environ.get(ENVIRONMENT_VARIABLE)):
        explicit = Path(variable)
    found: dict[Path, Path] = {}
    for path in (SHIPPED, user_file(), Path(FILE_NAME)):
        if path.is_file():
            found.setdefault(path.resolve(), path)
    if explicit is not None:
        found.pop(explicit.resolve(), None)
        found[explicit.resolve()] = explicit
    return list(found.values())


def load_catalogue(paths: Iterable[Path]) -> Catalogue:
    """Merge the files: of tables the later key wins. Raises UserErrors naming file and key."""
    merged: dict[str, Any] = {}
    for path in paths:
        _merge(merged, _read_layer(path).model_dump(exclude_unset=True))
    return Catalogue.model_validate(merged)


def _read_layer(path: Path) -> Catalogue:
    raw = read_toml(path)
    try:
        layer = Catalogue.model_validate(raw)
    except ValidationError as error:
        raise problem_report(path, validation_problems(error, Catalogue, raw)) from error
    lock = layer.policy.lock
    if lock is None:
        return layer
    lock = path.parent / lock
    if not lock.is_file():
        raise UserError(f"{path}: policy.lock: there is no file {lock}.")
    return layer.model_copy(update={"policy": layer.policy.model_copy(update={"lock": lock})})


def _merge(into: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for section, table in layer.items():
        if section in ("prefer", "alias"):
            _merge(into.setdefault(section, {}), table)
        elif isinstance(table, Mapping):
            into.setdefault(section, {}).update(table)
        else:
            into[section] = table
