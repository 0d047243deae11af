"""Options with presets."""

from __future__ import annotations

from typing import ClassVar, Literal

import pytest
from pydantic import ConfigDict, Field, ValidationError

from specdec_core.config.presets import PresetOptions


class Options(PresetOptions):
    model_config = ConfigDict(frozen=True, extra="forbid")
    presets: ClassVar = {"slow": {"steps": 7, "decay": 0.8}, "quick": {"steps": 1}}

    preset: Literal["slow", "quick"] = Field("slow")
    steps: int = 3
    decay: float = 1.0


def test_a_preset_sets_what_is_not_given() -> None:
    assert Options(preset="quick") == Options.model_validate({"preset": "quick", "steps": 1, "decay": 1.0})
    assert Options(preset="quick", steps=5).steps == 5


def test_the_default_preset_holds_where_none_is_named() -> None:
    assert (Options().steps, Options(decay=0.5).decay) == (7, 0.5)


def test_written_options_read_back_the_same() -> None:
    options = Options(preset="quick", decay=0.3)
    assert Options.model_validate_json(options.model_dump_json()) == options


@pytest.mark.parametrize(
    "values", [{"preset": "quik"}, {"preset": ["quick"]}, {"preset": "quick", "stepz": 1}, ["quick"]]
)
def test_what_is_no_preset_or_no_key_is_refused(values: object) -> None:
    with pytest.raises(ValidationError):
        Options.model_validate(values)
