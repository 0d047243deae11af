"""Options with presets: one key that sets several others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, model_validator


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
