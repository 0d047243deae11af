"""One TOML file to a run config: what is wrong with it is told at once, in sentences that say what to do."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from specdec_core.config.load import problem_report, read_config, validate_config
from specdec_core.config.problems import did_you_mean, shown, validation_problems
from specdec_core.config.run import PLUGIN_LISTS, PLUGIN_SECTIONS, PluginSection, RunConfig
from specdec_core.config.show import to_toml
from specdec_core.errors import UserError, UserErrors

MINIMAL = """
algorithm = "a"
backbone = { name = "b", size = 3 }
[target]
path = "somewhere"
"""


def load(tmp_path: Path, text: str, *overrides: str) -> RunConfig:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return load_file(path, *overrides)


def load_file(path: Path, *overrides: str) -> RunConfig:
    """Read and validated, without plugins."""
    raw, messages = read_config(path, overrides)
    config, problems = validate_config(raw)
    if config is None or messages:
        raise problem_report(path, problems, messages)
    return config


def problems(text: str) -> list[str]:
    config, found = validate_config(tomllib.loads(text))
    assert config is None
    return [str(problem) for problem in found]


def test_defaults_and_overrides(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL, "train.lr=3e-4", "data.train=['a.jsonl']", "algorithm.steps=3", "engine=other")
    assert config.train.lr == 3e-4
    assert config.data.train == (Path("a.jsonl"),)
    assert (config.algorithm.name, config.algorithm.options) == ("a", {"steps": 3})
    assert config.backbone.options == {"size": 3}
    assert config.engine == PluginSection(name="other")
    assert config.export.name == "hf"


def test_a_default_plugins_option_needs_no_section_in_the_file(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL, "engine.device=cpu")
    assert (config.engine.name, config.engine.options) == ("torch", {"device": "cpu"})


def test_a_config_is_frozen(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL)
    for thing, key in ((config, "train"), (config.train, "lr"), (config.algorithm, "name")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(thing, key, None)


def test_every_error_at_once_each_with_path_found_allowed_and_hint() -> None:
    text = """
    [target]
    pth = "x"
    dtype = "float23"
    [draft]
    vocab_size = 0
    [data]
    train = "a.jsonl"
    packing = "perhaps"
    [train]
    lr = "fast"
    epochs = inf
    batch_size = 1.5
    betas = [0.9]
    max_length = 3
    colour = "red"
    [eval]
    prompts = [{ path = "x" }, 3]
    [trian]
    """
    assert problems(text) == [
        "target.path: missing. A local directory, a .gguf file, a Hub id such as org/name, or package:NAME/FILE in an "
        "installed package.",
        "target.dtype: found \"float23\"; allowed: 'float32', 'bfloat16' or 'float16'. Did you mean \"float32\"?",
        'target.pth: unknown key (found "x"). Did you mean "path"? '
        "Allowed keys: path, revision, dtype, attention, trust_remote_code.",
        "backbone: missing. How the target is loaded: [backbone] with the name of a plugin.",
        "algorithm: missing. How the draft works: [algorithm] with the name of a plugin.",
        "draft.vocab_size: found 0; allowed: greater than or equal to 1.",
        'data.train: found "a.jsonl"; allowed: a list in square brackets, such as ["a.jsonl"].',
        'data.packing: found "perhaps"; allowed: true or false.',
        "train.epochs: found Infinity; allowed: a finite number.",
        "train.batch_size: found 1.5; allowed: a whole number.",
        'train.lr: found "fast"; allowed: a number.',
        "train.betas.1: missing.",
        "train.max_length: unknown key (found 3). Did you mean data.max_length? Allowed keys: "
        + ", ".join(RunConfig.model_fields["train"].annotation.model_fields)  # type: ignore[union-attr]
        + ".",
        'train.colour: unknown key (found "red"). Allowed keys: '
        + ", ".join(RunConfig.model_fields["train"].annotation.model_fields)  # type: ignore[union-attr]
        + ".",
        "eval.prompts.0.name: missing. Name of the plugin that serves this section.",
        "eval.prompts.1: found 3; allowed: a table.",
        'trian: unknown key (found {}). Did you mean "train"? Allowed keys: ' + ", ".join(RunConfig.model_fields) + ".",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[target]\npath = ''", 'target.path: found ""; allowed: '),
        ("[train]\nbetas = [2, 0.9]", "train.betas.0: found 2; allowed: less than 1."),
        ("[train]\nepochs = 1e308", "train.epochs: found 1e+308; allowed: less than or equal to 1000000."),
        ("[train]\nseed = -1", "train.seed: found -1; allowed: greater than or equal to 0."),
        ("[eval]\nseed = 9223372036854775808", "eval.seed: found 9223372036854775808; allowed: less than "),
    ],
)
def test_numbers_that_no_run_can_use(text: str, sentence: str) -> None:
    assert any(problem.startswith(sentence) for problem in problems(text))


@pytest.mark.parametrize("text", ["engine = 3", "algorithm = []", "backbone = true", "train = 1", "loggers = 'log'"])
def test_a_section_that_is_no_table(text: str) -> None:
    found = [problem for problem in problems(text) if problem.startswith(text.split(" = ", maxsplit=1)[0])]
    assert len(found) == 1
    assert "allowed: a " in found[0]


def test_the_members_of_a_union_are_one_problem() -> None:
    class Model(BaseModel):
        size: int | bool | list[int] | tuple[int, ...]

    from pydantic import ValidationError

    data = {"size": "x"}
    with pytest.raises(ValidationError) as error:
        Model.model_validate(data)
    (problem,) = validation_problems(error.value, Model, data, prefix=["plugin"])
    assert problem.path == "plugin.size"
    assert "a whole number" in problem.text
    assert "true or false" in problem.text
    assert problem.text.count("a list") == 1


def test_what_is_missing_in_a_member_of_a_union_has_a_plain_path() -> None:
    from pydantic import ValidationError

    class Inner(BaseModel):
        size: int

    class Model(BaseModel):
        inner: Inner | int

    data: dict[str, Any] = {"inner": {}}
    with pytest.raises(ValidationError) as error:
        Model.model_validate(data)
    assert {problem.path for problem in validation_problems(error.value, Model, data)} == {"inner", "inner.size"}


def test_a_plugins_own_validator_speaks(tmp_path: Path) -> None:
    from pydantic import ValidationError, field_validator

    class Model(BaseModel):
        size: int

        @field_validator("size")
        @classmethod
        def even(cls, value: int) -> int:
            if value % 2:
                raise ValueError("allowed: even sizes, because halves are used")
            return value

    with pytest.raises(ValidationError) as error:
        Model.model_validate({"size": 3})
    (problem,) = validation_problems(error.value, Model, {"size": 3}, prefix=["p"])
    assert str(problem) == "p.size: found 3; allowed: even sizes, because halves are used."


CORE_KEYS = [
    (section, key)
    for section, field in RunConfig.model_fields.items()
    if isinstance(field.annotation, type) and section not in PLUGIN_SECTIONS
    for key in field.annotation.model_fields
]


@given(st.sampled_from(CORE_KEYS), st.integers(0, 20), st.sampled_from("qxz"))
def test_a_slip_in_any_key_is_found_and_mended(place: tuple[str, str], at: int, letter: str) -> None:
    section, key = place
    at %= len(key) + 1
    slip = key[:at] + letter + key[at:]
    raw: dict[str, Any] = {**tomllib.loads(MINIMAL)}
    raw[section] = {**raw.get(section, {}), slip: 1}
    _, found = validate_config(raw)
    (problem,) = found
    assert problem.path == f"{section}.{slip}"
    assert f'Did you mean "{key}"?' in problem.text


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a = 1\nb = = 2\n", ":2:5: not valid TOML: "),
        (b'a = "open', ":1:10: not valid TOML: "),
        (b"[t]\n[t]\n", ":2:3: not valid TOML: "),
        (b"\x80\x03}q\x00.", ": is not a text file in UTF-8, so not TOML."),
    ],
)
def test_a_file_that_is_not_toml(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_file(path)
    assert str(error.value).startswith(f"{path}{sentence}")
    assert "\n" not in str(error.value)


def test_a_missing_file_a_directory_and_an_unreadable_name(tmp_path: Path) -> None:
    (tmp_path / "train.toml").write_text(MINIMAL)
    with pytest.raises(UserError, match=r'/trian\.toml: no such file\. Did you mean "train\.toml"\?$'):
        load_file(tmp_path / "trian.toml")
    with pytest.raises(UserError, match=r"elsewhere\.toml: no such file\.$"):
        load_file(tmp_path / "nowhere" / "elsewhere.toml")
    with pytest.raises(UserError, match="is a directory; give a TOML file in it"):
        load_file(tmp_path)
    with pytest.raises(UserError, match=r"cannot be read: "):
        load_file(tmp_path / "train.toml" / "below")


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert load_file(path).target.path == "somewhere"


def test_the_report_names_the_file_and_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(UserErrors) as error:
        load(tmp_path, MINIMAL, "train.lr=-1", "nonsense")
    assert error.value.messages == (
        "command line: `nonsense` is not of the form section.key=value, such as train.lr=3e-4.",
        f"{tmp_path}/run.toml: train.lr: found -1; allowed: greater than 0.",
    )


def test_overrides_alone_can_be_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserErrors, match="nonsense"):
        load(tmp_path, MINIMAL, "nonsense")


PATHS = st.lists(st.from_regex(r"[a-z]{1,5}\.jsonl", fullmatch=True), max_size=3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    train=PATHS,
    lr=st.floats(1e-9, 1.0),
    steps=st.none() | st.integers(1, 10**6),
    name=st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
    options=st.dictionaries(st.sampled_from("xyz"), st.integers() | st.lists(st.integers(), max_size=2)),
)
def test_a_shown_config_reads_back_as_itself(
    tmp_path: Path, train: list[str], lr: float, steps: int | None, name: str | None, options: dict[str, Any]
) -> None:
    chosen = {
        "name": "p",
        **{key: value for key, value in options.items() if not isinstance(value, int) or abs(value) < 2**62},
    }
    config = RunConfig.model_validate(
        {
            "target": {"path": "x"},
            "backbone": chosen,
            "algorithm": "a",
            "data": {"train": train},
            "train": {"lr": lr, "max_steps": steps, "run_name": name},
            "eval": {"prompts": [chosen, "p"]},
            "loggers": [chosen] * 2,
        }
    )
    assert load(tmp_path, to_toml(config.model_dump(mode="json"))) == config


def test_a_shown_config_says_which_keys_are_not_set(tmp_path: Path) -> None:
    text = to_toml(load(tmp_path, MINIMAL).model_dump(mode="json"))
    assert "# cache is not set" in text
    assert "# max_steps is not set" in text
    assert text.index("# cache is not set") < text.index("[target]")
    assert tomlkit.parse(text)


def test_every_key_of_the_core_is_described() -> None:
    for section, field in RunConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            for key, inner in field.annotation.model_fields.items():
                assert inner.description, f"{section}.{key}"


def test_every_plugin_section_is_known_to_the_resolver() -> None:
    def holds_plugins(annotation: Any) -> bool:
        return annotation is PluginSection or any(map(holds_plugins, getattr(annotation, "__args__", ())))

    single = {key for key, field in RunConfig.model_fields.items() if holds_plugins(field.annotation)} - {"loggers"}
    assert single == set(PLUGIN_SECTIONS)
    assert set(PLUGIN_LISTS) == {"loggers", "eval.prompts", "eval.baselines"}


def test_words_are_suggested_and_values_shortened() -> None:
    assert did_you_mean("LR", ["lr", "seed"]) == ' Did you mean "lr"?'
    assert did_you_mean("nothing", ["lr", "seed"]) == ""
    assert len(shown("x" * 1000)) == 60
    assert shown(Path("a")) == '"a"'


def test_the_config_room_imports_no_torch() -> None:
    rooms = "load, overrides, problems, run, schema, show"
    code = f"import sys; from specdec_core.config import {rooms}; from specdec_core.registry import resolve; "
    code += "sys.exit(bool({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
