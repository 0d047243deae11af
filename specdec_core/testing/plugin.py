"""What every plugin promises: to be found by name, quickly, with options that are checked."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

from pydantic import BaseModel, ValidationError

from specdec_core.registry.record import Record
from specdec_core.registry.registry import Registry
from specdec_core.registry.resolve import load_class, options_model, validate_options
from specdec_core.testing.promises import promise

HEAVY = ("torch", "transformers", "datasets")
"""What takes seconds to import."""


class PluginContract:
    """Subclassed by the contract of each kind.

    name     under which the plugin is registered
    options  the keys of its section of a config; what is not here has its default
    waived   promises that are not kept with these options, each with the reason
    """

    kind: ClassVar[str]
    name: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    waived: ClassVar[Mapping[str, str]] = {}

    @classmethod
    @cache
    def record(cls) -> Record:
        """What the registry knows of the plugin. Raises UserError, with the mend, if it cannot be used."""
        return Registry.discover().find(cls.kind, cls.name)

    @classmethod
    def load(cls, **changed: Any) -> Any:
        """The plugin's class made with its validated options, some of them changed."""
        record = cls.record()
        assert record.spec is not None
        implementation = load_class(record.spec, record.source)
        return implementation(validate_options(options_model(record), {**cls.options, **changed}))

    @promise("light-imports")
    def test_spec_and_options_import_no_torch(self) -> None:
        """A fresh interpreter imports both modules and is asked what else that brought."""
        record = self.record()
        assert record.spec is not None
        references = [record.entry_point, record.spec.config or record.entry_point]
        for module in dict.fromkeys(reference.partition(":")[0] for reference in references):
            heavy = [name for name in _imports_of(module) if name in HEAVY]
            assert not heavy, f"importing {module} imports {', '.join(heavy)}; import it where it is used"

    @promise("options")
    def test_defaults_are_valid(self) -> None:
        """Required keys are taken from `options`."""
        model = options_model(self.record())
        required = {key: self.options[key] for key, field in model.model_fields.items() if field.is_required()}
        self._check_valid(model, required)

    @promise("options")
    def test_options_are_valid(self) -> None:
        """With the defaults of the keys that `options` leaves out."""
        self._check_valid(options_model(self.record()), self.options)

    def _check_valid(self, model: type[BaseModel], options: Mapping[str, Any]) -> None:
        made = validate_options(model, options)
        again = validate_options(model, made.model_dump(mode="json"))
        assert made == again, f"options {made!r} read back from JSON as {again!r}"

    @promise("options")
    def test_unknown_keys_are_refused(self) -> None:
        """A misspelt key must not be a key that is left out."""
        try:
            validate_options(options_model(self.record()), {**self.options, "no_such_option": 1})
        except ValidationError:
            return
        raise AssertionError('the unknown key "no_such_option" is accepted; set extra="forbid" in the model_config')

    @promise("options")
    def test_options_cannot_be_changed(self) -> None:
        """What the run directory says of a run must stay true."""
        model = options_model(self.record())
        made = validate_options(model, self.options)
        for key in model.model_fields:
            try:
                setattr(made, key, getattr(made, key))
            except ValidationError:
                continue
            raise AssertionError(f"option {key} can be set on the validated options; set frozen=True")


def _imports_of(module: str) -> list[str]:
    """The modules that a fresh interpreter holds after importing `module`."""
    code = f"import sys, {module}; print(*sys.modules, sep='\\n')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"import {module} fails: {done.stderr.strip().splitlines()[-1]}"
    return done.stdout.split()
