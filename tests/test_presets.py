"""Options with presets."""

from __future__ import annotations

from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ConfigDict, Field, ValidationError

from specdec_core.config.presets import PresetOptions, preset_problems


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


def problems(options: dict[str, object], *overridden: str) -> list[str]:
    return [str(problem) for problem in preset_problems("algorithm", Options, options, overridden)]


def test_a_preset_of_the_command_line_that_the_config_overrules_is_a_problem() -> None:
    saved = Options(preset="slow").model_dump()
    assert problems({**saved, "preset": "quick"}, "algorithm.preset") == [
        'algorithm.preset: "quick" is overruled by the config, which gives algorithm.decay = 0.8, algorithm.steps = 7; '
        "override these keys too."
    ]
    both = ("algorithm.preset", "algorithm.decay", "algorithm.steps")
    assert problems({**saved, "preset": "quick"}, *both) == []
    assert problems({**saved, "preset": "quick"}) == []
    assert problems({**saved, "preset": "quik"}, "algorithm.preset") == []


@given(st.sampled_from(["slow", "quick"]), st.fixed_dictionaries({}, optional={"steps": st.sampled_from([1, 3, 7])}))
def test_without_a_problem_a_preset_does_what_it_says(preset: str, given: dict[str, object]) -> None:
    options = {"preset": preset, **given}
    if not problems(options, "algorithm.preset"):
        assert Options.model_validate(options) == Options.model_validate({"preset": preset})
