"""Options with presets: one key that sets several others."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, model_validator
from pydantic_core import to_jsonable_python

from specdec_core.config.problems import Problem, shown


class PresetOptions(BaseModel):
    """A plugin's options, of which `preset` names values for some of the others. Keys that are given win over it.

    A subclass fills `presets`, by name, and declares the field `preset` with its names and its default.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]]

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        chosen = values.get("preset", cls.model_fields["preset"].default)
        return {**cls.presets.get(str(chosen), {}), **values}


def preset_problems(
    path: str, model: type[BaseModel], options: Mapping[str, Any], overridden: Collection[str]
) -> list[Problem]:
    """What keeps a preset that is chosen on the command line from doing what it says: keys of the config win over it.

    path        of the section that holds `options`
    overridden  the dotted keys of the command line
    """
    if f"{path}.preset" not in overridden or not issubclass(model, PresetOptions):
        return []
    preset = options["preset"]
    if not isinstance(preset, str) or preset not in model.presets:
        return []  # the model says so
    governed = sorted({key for values in model.presets.values() for key in values})
    wanted = {key: model.presets[preset].get(key, model.model_fields[key].default) for key in governed}
    standing = [
        f"{path}.{key} = {shown(options[key])}"
        for key, value in wanted.items()
        if key in options and f"{path}.{key}" not in overridden and options[key] != to_jsonable_python(value)
    ]
    if not standing:
        return []
    text = f"{shown(preset)} is overruled by the config, which gives {', '.join(standing)}; override these keys too."
    return [Problem(f"{path}.preset", text)]
