"""A config to the plugins that serve it, each with its own validated options. Loads no implementation."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from specdec_core.config.load import problem_report, read_config, validate_config
from specdec_core.config.overrides import overridden_keys
from specdec_core.config.presets import preset_problems
from specdec_core.config.problems import Problem, shown, validation_problems
from specdec_core.config.run import PLUGIN_LISTS, PLUGIN_SECTIONS, PluginSection, RunConfig
from specdec_core.errors import UserError, UserErrors
from specdec_core.registry.explain import made_with
from specdec_core.registry.lock import FILE_NAME, Lock, LockedPlugin, make_lock, read_lock
from specdec_core.registry.record import Record
from specdec_core.registry.registry import Registry
from specdec_core.registry.specs import PluginSpec


class NoOptions(BaseModel):
    """The options of a plugin that takes none."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class ResolvedPlugin:
    """A plugin chosen for a section. `options` is a validated instance of the plugin's config model."""

    section: str
    spec: PluginSpec
    distribution: str
    version: str
    entry_point: str
    options: BaseModel

    def implementation(self) -> Any:
        """The plugin's class; see `load_class`."""
        return load_class(self.spec, self.source)

    def load(self) -> Any:
        """An instance of the plugin's class, made with its options; see `load_class`."""
        return self.implementation()(self.options)

    @property
    def source(self) -> str:
        """Distribution and version."""
        return f"{self.distribution} {self.version}"

    @property
    def table(self) -> dict[str, Any]:
        """The section as a config could hold it, the plugin's defaults included."""
        return {"name": self.spec.name, **self.options.model_dump(mode="json")}

    @property
    def locked(self) -> LockedPlugin:
        """What the lock says of it."""
        return LockedPlugin(
            section=self.section,
            kind=self.spec.kind,
            name=self.spec.name,
            distribution=self.distribution,
            version=self.version,
            api_version=self.spec.api_version,
            entry_point=self.entry_point,
            implementation=self.spec.implementation,
        )


@dataclass(frozen=True)
class ResolvedRun:
    """A config and the plugins that serve it."""

    config: RunConfig
    backbone: ResolvedPlugin
    algorithm: ResolvedPlugin
    engine: ResolvedPlugin
    export: ResolvedPlugin
    cache: ResolvedPlugin | None
    prompts: tuple[ResolvedPlugin, ...]
    baselines: tuple[ResolvedPlugin, ...]
    loggers: tuple[ResolvedPlugin, ...]

    @property
    def plugins(self) -> tuple[ResolvedPlugin, ...]:
        """All of them."""
        single = (self.backbone, self.algorithm, self.engine, self.export, self.cache)
        return (*(plugin for plugin in single if plugin), *self.prompts, *self.baselines, *self.loggers)

    @property
    def lock(self) -> Lock:
        """Which distributions and versions these plugins are of."""
        return make_lock([plugin.locked for plugin in self.plugins])

    @property
    def table(self) -> dict[str, Any]:
        """The whole config, defaults of core and plugins included, JSON-able; unset keys are None."""
        table = self.config.model_dump(mode="json")
        for section in PLUGIN_SECTIONS:
            plugin = getattr(self, section)
            table[section] = plugin.table if plugin else None
        table["eval"]["prompts"] = [plugin.table for plugin in self.prompts]
        table["eval"]["baselines"] = [plugin.table for plugin in self.baselines]
        table["loggers"] = [plugin.table for plugin in self.loggers]
        return table

    @property
    def fingerprint(self) -> str:
        """Hex digest that is equal iff config and lock are: ranks compare it before they start."""
        content = {"config": self.table, "lock": self.lock.model_dump(mode="json")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def resolve_file(path: Path, overrides: list[str], registry: Registry) -> ResolvedRun:
    """Read, validate and resolve a config file. Raises UserErrors: the core's and the plugins' in one report.

    If the config's run has begun, its lock says what to install for a plugin that is missing.
    """
    raw, messages = read_config(path, overrides)
    config, problems = validate_config(raw)
    lock = _lock_in(config.train.output_dir) if config else None
    plugins, more = _resolve_sections(raw, registry, lock, overridden_keys(overrides))
    if config is None or messages or more:
        raise problem_report(path, [*problems, *more], messages)
    return _assemble(config, plugins)


def resolve(
    config: RunConfig, registry: Registry, lock: Lock | None = None, overrides: Sequence[str] = ()
) -> ResolvedRun:
    """Resolve a config that is in memory. Raises UserErrors with one sentence for each problem.

    lock       that of the config's run: it says what to install for a plugin that is missing
    overrides  what was set in the config on the command line
    """
    plugins, problems = _resolve_sections(config.model_dump(), registry, lock, overridden_keys(overrides))
    if problems:
        raise UserErrors([str(problem) for problem in problems])
    return _assemble(config, plugins)


def _assemble(config: RunConfig, plugins: Mapping[str, ResolvedPlugin]) -> ResolvedRun:
    def listed(section: str) -> tuple[ResolvedPlugin, ...]:
        return tuple(plugin for plugin in plugins.values() if plugin.section == section)

    return ResolvedRun(
        config=config,
        **{section: plugins.get(section) for section in PLUGIN_SECTIONS},  # type: ignore[arg-type]
        prompts=listed("eval.prompts"),
        baselines=listed("eval.baselines"),
        loggers=listed("loggers"),
    )


def _lock_in(directory: Path) -> Lock | None:
    path = directory / FILE_NAME
    with contextlib.suppress(UserError):
        return read_lock(path) if path.is_file() else None
    return None


def _resolve_sections(
    raw: Mapping[str, Any], registry: Registry, lock: Lock | None, overridden: Collection[str]
) -> tuple[dict[str, ResolvedPlugin], list[Problem]]:
    """Every plugin section of `raw` that is well-formed, by dotted path, and what is wrong with the others' content."""
    plugins, problems = {}, []
    for path, section, kind, chosen in _plugin_sections(raw):
        try:
            record = registry.find(kind, chosen.name)
            model = options_model(record)
        except UserError as error:
            mend = made_with(lock, kind, chosen.name, registry.records)
            problems.append(Problem(f"{path}.name", f"{error}{mend}"))
            continue
        try:
            options = validate_options(model, chosen.options)
        except ValidationError as error:
            problems += _options_problems(error, model, chosen, path, record)
            continue
        problems += preset_problems(path, model, chosen.options, overridden)
        assert record.spec is not None
        assert record.version is not None
        plugins[path] = ResolvedPlugin(
            section, record.spec, record.distribution, record.version, record.entry_point, options
        )
    return plugins, problems


def _options_problems(
    error: ValidationError, model: type[BaseModel], chosen: PluginSection, path: str, record: Record
) -> list[Problem]:
    if model is NoOptions:
        return [
            Problem(
                f"{path}.{key}", f"unknown key (found {shown(value)}): {record.kind} {record.name} takes no options."
            )
            for key, value in chosen.options.items()
        ]
    return validation_problems(error, model, chosen.options, prefix=[path])


def _plugin_sections(raw: Mapping[str, Any]) -> Iterator[tuple[str, str, str, PluginSection]]:
    """(dotted path, section, kind, content) of each; a malformed one is left to the core's own validation."""
    for section, kind in PLUGIN_SECTIONS.items():
        value = raw.get(section, RunConfig.model_fields[section].default)
        yield from _plugin_section(section, section, kind, value)
    for section, kind in PLUGIN_LISTS.items():
        values: Any = raw
        for part in section.split("."):
            values = values.get(part) if isinstance(values, Mapping) else None
        for index, value in enumerate(values if isinstance(values, list | tuple) else ()):
            yield from _plugin_section(f"{section}.{index}", section, kind, value)


def _plugin_section(path: str, section: str, kind: str, value: Any) -> Iterator[tuple[str, str, str, PluginSection]]:
    with contextlib.suppress(ValidationError):
        yield path, section, kind, PluginSection.model_validate(value)


def options_model(record: Record) -> type[BaseModel]:
    """The model of a plugin's options. Raises UserError, with the reason, if it cannot be imported."""
    assert record.spec is not None
    if record.spec.config is None:
        return NoOptions
    model = import_reference(record.spec.config, f"the options of {record.kind} {record.name} of {record.source}")
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise UserError(
            f"{record.spec.config} of {record.source} is not a pydantic model; this is a fault of that plugin."
        )
    return model


def validate_options(model: type[BaseModel], options: Mapping[str, Any]) -> BaseModel:
    """A plugin's options; unknown keys are refused unless the model says otherwise. Raises ValidationError."""
    return model.model_validate(options, extra=model.model_config.get("extra", "forbid"))


def load_class(spec: PluginSpec, source: str) -> Any:
    """A plugin's class. Raises UserError, with the reason, if it cannot be imported or leaves methods abstract."""
    found = import_reference(spec.implementation, f"{spec.kind} {spec.name} of {source}")
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        lacks = f"{spec.implementation} of {source} does not implement {', '.join(missing)}"
        raise UserError(f"{lacks}; this is a fault of that plugin.")
    return found


def import_reference(reference: str, what: str) -> Any:
    """What `package.module:Attribute` names. Raises UserError saying that `what` cannot be loaded, and why."""
    module_name, _, attribute = reference.partition(":")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f'{what} cannot be loaded: {reason}. `python -c "import {module_name}"` shows the traceback.'
        ) from error
    return found
