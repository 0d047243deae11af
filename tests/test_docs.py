"""The documentation says what the code does: keys, defaults, hooks, contracts, commands and examples."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import typer
from config_tables import HEAD, HEADING, core_sections, default_of, models, pages, rewritten, table
from example_packages import ROOT, install_hydra, install_metadata
from pydantic import BaseModel, Field
from typer.testing import CliRunner

from specdec_core.cli.main import app
from specdec_core.config.run import PLUGIN_LISTS, PLUGIN_SECTIONS, RunConfig
from specdec_core.registry.hooks import Hooks
from specdec_core.registry.registry import Registry
from specdec_core.registry.resolve import resolve
from specdec_core.registry.specs import KINDS

FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
QUOTE = re.compile(r'--8<-- "(.+)"\n')
OVERRIDE = re.compile(r"([a-z_]+)\.([a-z_]+)[.\w]*=")


def fences(language: str) -> Iterator[tuple[str, str, str]]:
    """(page, title, content) of every block of a language. A file that is quoted is the block's content and title."""
    for page in pages():
        for found in FENCE.finditer(page.read_text(encoding="utf-8")):
            title, content = found[2] or "", found[3]
            if quoted := QUOTE.fullmatch(content):
                assert title == quoted[1], f"{page.name} quotes {quoted[1]} under the title {title}"
                content = (ROOT / title).read_text(encoding="utf-8")
            if found[1] == language:
                yield page.name, title, content


def commands() -> list[str]:
    """Every `specdec` command in a shell block."""
    return [line for _, _, block in fences("sh") for line in block.splitlines() if line.startswith("specdec ")]


def test_the_tables_of_keys_are_what_the_models_say() -> None:
    known = models()
    for page in pages():
        text = page.read_text(encoding="utf-8")
        assert rewritten(text, known) == text, f"{page.name} is not current: run `make tables`"


def test_every_model_has_one_table() -> None:
    """Document a plugin's options under `### kind name`, as in config.md."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages())
    headings = [found[1] or f"{found[2]} {found[3]}" for found in HEADING.finditer(text)]
    assert sorted(headings) == sorted(models())
    assert text.count(HEAD) == sum(bool(model.model_fields) for model in models().values())


def test_a_table_says_defaults_meanings_and_what_is_allowed() -> None:
    class Model(BaseModel):
        path: str = Field(description="Where | which.")
        kind: Literal["a", "b"] | None = Field(None, description="What.")
        sizes: tuple[int, ...] = Field((1, 2), description="How many.")

    expected = (
        f"{HEAD}| `path` | required | Where \\| which. |\n"
        '| `kind` | not set | What. One of `"a"`, `"b"`. |\n| `sizes` | `[1, 2]` | How many. |\n'
    )
    assert table(Model) == expected
    page = f"### engine one\n\nIt is.\n\n{HEAD}| `path` | `1` | Old. |\n\nMore.\n\n### engine none\n\nNo keys.\n"
    made = rewritten(page, {"engine one": Model, "engine none": BaseModel})
    assert made == page.replace(f"{HEAD}| `path` | `1` | Old. |\n", expected)


def test_every_section_is_in_the_config_page() -> None:
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    plugins = {**PLUGIN_SECTIONS, **PLUGIN_LISTS}
    assert {*core_sections(), *(section.partition(".")[0] for section in plugins)} == set(RunConfig.model_fields)
    for section, kind in plugins.items():
        shown = f"[[{section}]]" if section in PLUGIN_LISTS else f"[{section}]"
        assert f"| `{shown}` | {kind} |" in page


def hook_table() -> dict[str, list[str]]:
    """Each hook of the plugin page's table, and its arguments."""
    _, _, rest = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8").partition("| hook | arguments | called |\n")
    rows = [line.split(" | ") for line in rest.partition("\n\n")[0].splitlines()[1:]]
    return {re.sub(r"[|` ]", "", hook): re.findall(r"`(\w+)`", arguments) for hook, arguments, _ in rows}


def test_every_hook_is_documented_with_the_arguments_that_it_has() -> None:
    hooks = {name: hook for name, hook in vars(Hooks).items() if name.startswith("specdec_")}
    assert hook_table() == {name: [*inspect.signature(hook).parameters][1:] for name, hook in hooks.items()}


def test_the_plugin_page_mentions_every_kind_and_abstract_method() -> None:
    from specdec_core.algorithm.base import TrainedAlgorithm, TrainingFreeAlgorithm
    from specdec_core.capture.source import FeatureCache
    from specdec_core.engine.base import Engine
    from specdec_core.evaluate.prompts import PromptPack
    from specdec_core.export.base import Exporter
    from specdec_core.registry.specs import PluginSpec
    from specdec_core.target.base import Backbone, Target

    words = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")))
    assert {*KINDS, *PluginSpec.__dataclass_fields__} <= words
    contracts: list[Any] = [TrainedAlgorithm, TrainingFreeAlgorithm, Backbone, Target, Engine]
    for contract in (*contracts, Exporter, FeatureCache, PromptPack):
        assert contract.__abstractmethods__ <= words, contract.__name__


def test_links_between_pages_outside_the_documentation_lead_somewhere() -> None:
    """Those within it are checked when it is built."""
    tops = ("*.md", "examples/*/*.md", "plugins/*/*.md", "demo/*.md", "benchmarks/*.md")
    pages = [page for top in tops for page in ROOT.glob(top)]
    links = [
        (page, link)
        for page in pages
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
        if "://" not in link
    ]
    assert len(links) > 3
    for page, link in links:
        assert (page.parent / link).exists(), f"{page}: {link}"


def test_the_docs_have_commands() -> None:
    assert len(commands()) > 20


@pytest.mark.parametrize("line", commands())
def test_a_command_parses_and_its_overrides_exist(line: str) -> None:
    words = shlex.split(line.partition(" > ")[0])[1:]
    command: Any = typer.main.get_command(app)
    context = None
    while hasattr(command, "resolve_command"):
        context = command.make_context("specdec", words, parent=context)
        _, command, words = command.resolve_command(context, context._protected_args + context.args)
    command.make_context(command.name, words, parent=context)
    for section, key in OVERRIDE.findall(line):
        assert section in RunConfig.model_fields, f"{section}.{key}"
        if section in (sections := core_sections()):
            assert key in sections[section].model_fields, f"{section}.{key}"


@pytest.mark.parametrize("text", [text for _, title, text in fences("toml") if "[target]" in text])
def test_a_whole_config_is_valid(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text(text, encoding="utf-8")
    result = CliRunner().invoke(app, ["config", "check", "run.toml"])
    assert result.exit_code == 0, result.output


def test_blocks_of_toml_and_json_are_well_formed() -> None:
    for _, _, text in fences("toml"):
        tomllib.loads(text)
    for _, _, text in fences("json"):
        json.loads(text)


def test_every_key_of_a_registry_file_is_documented() -> None:
    from specdec_core.registry.catalogue import Catalogue, CatalogueEntry, Policy

    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    _, _, rows = page.partition("| table | key | default | meaning |\n|---|---|---|---|\n")
    tables: dict[str, dict[str, str]] = {}
    for section, key, default in re.findall(
        r"^\|(?: `\[(\w+)[.\w]*\]`)? \| `([\w.]+)` \| (.+?) \|", rows, re.MULTILINE
    ):
        tables.setdefault(section or list(tables)[-1], {})[key] = default
    by_name = {"KIND.NAME": "none"}
    defaults = {
        name: {key: default_of(field) for key, field in model.model_fields.items()}
        for name, model in {"plugins": CatalogueEntry, "policy": Policy}.items()
    }
    assert tables == {**defaults, "prefer": by_name, "alias": by_name}
    assert tables.keys() == Catalogue.model_fields.keys()


def test_a_registry_file_is_valid(tmp_path: Path) -> None:
    from specdec_core.registry.catalogue import load_catalogue

    files = [text for _, title, text in fences("toml") if title == "registry.toml"]
    assert files
    for text in files:
        (tmp_path / "registry.toml").write_text(text, encoding="utf-8")
        load_catalogue([tmp_path / "registry.toml"])


def install(page: str, directory: Path) -> None:
    """Write a page's package and its metadata, as pip would have it."""
    for name, title, text in [*fences("python"), *fences("toml")]:
        if name == page and re.fullmatch(r"specdec_\w+/\w+\.py", title):
            file = directory / title
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")
        elif name == page and title == "pyproject.toml":
            install_metadata(text, directory)


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages of these pages, installed in this process."""
    monkeypatch.syspath_prepend(tmp_path)
    install_hydra(tmp_path)
    for page in ("plugins.md", "algorithm.md", "joint.md"):
        install(page, tmp_path)


def test_the_example_packages_train_and_decode_losslessly(
    examples: None, tiny_target_dir: Path, conversations_file: Path, tmp_path: Path
) -> None:
    from toy_runs import toy_config, train

    from specdec_core.checkpoint.open import open_run
    from specdec_core.evaluate.run import evaluate_run

    sections = {
        "algorithm": {"name": "hydra", "heads": 2},
        "draft": {"vocab_size": None},
        "train": {"max_steps": 2, "save_every": 2},
        "eval": {"prompts": [{"name": "acme", "product": "server"}], "max_new_tokens": 4},
        "loggers": ["acme-csv"],
    }
    run, _ = train(toy_config(tiny_target_dir, conversations_file, tmp_path / "run", **sections))
    assert len((run / "loss.csv").read_text().splitlines()) == 2
    assert (run / "draft" / "model.safetensors").exists()
    evaluation = evaluate_run(open_run(run, Registry.discover())).evaluation
    evaluation.check()
    assert evaluation.conditions.prompts == {"support": 2}
    prompts = [result.prompt.text for result in evaluation.results]
    assert "Why is the server slow?" in prompts


def test_the_example_that_trains_its_target_does(
    examples: None, tiny_target_dir: Path, conversations_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import load_file
    from specdec_joint.algorithm import JointHydra  # type: ignore[import-not-found]
    from toy_runs import toy_config, train

    import specdec_hydra.algorithm as module

    monkeypatch.setattr(module, "Hydra", JointHydra)
    sections = {
        "algorithm": {"name": "hydra", "heads": 2},
        "draft": {"vocab_size": None},
        "train": {"max_steps": 4, "save_every": 2, "keep_last": 2},
    }
    run, _ = train(toy_config(tiny_target_dir, conversations_file, tmp_path / "run", **sections))
    places = (tiny_target_dir / "model", *(run / f"checkpoints/step-0000000{n}/target" for n in (2, 4)))
    start, middle, end = (load_file(place.with_suffix(".safetensors")) for place in places)
    assert all(torch.equal(middle[name], tensor) for name, tensor in start.items())
    assert all(not torch.equal(end[name], tensor) for name, tensor in start.items())
    assert (run / "target" / "model.safetensors").exists()


def test_the_example_without_training_decodes_losslessly(examples: None) -> None:
    import torch
    from plain_targets import PlainTarget

    from specdec_core.decode.loop import decode

    def runs_of_three(ids: torch.Tensor) -> torch.Tensor:
        """0 0 0 1 1 1 2 2 2 …: every token three times."""
        return torch.eye(16)[[min(15, (position + 1) // 3) for position in range(len(ids))]]

    algorithm: Any = importlib.import_module("specdec_echo.algorithm").Echo(None)
    target = PlainTarget(runs_of_three, 16)
    emissions = list(decode(target, algorithm.drafter(target), [0], num_draft_tokens=2, max_new_tokens=20))
    assert [token for e in emissions for token in e.tokens] == [(position + 1) // 3 for position in range(20)]
    assert sum(e.accepted for e in emissions) > 5


def test_the_example_of_an_algorithm_refuses_what_it_cannot_do(examples: None) -> None:
    from specdec_core.config.run import DraftSection
    from specdec_core.errors import UserError

    config = {"target": {"path": "x"}, "backbone": "causal-lm", "algorithm": "hydra"}
    algorithm = resolve(RunConfig.model_validate(config), Registry.discover()).algorithm.load()
    with pytest.raises(UserError, match=r"leave them out"):
        algorithm.draft_config(SimpleNamespace(vocab_size=8), DraftSection(vocab_size=7))
