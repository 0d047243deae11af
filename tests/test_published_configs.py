"""Every config that ships, held against the published architecture of its target. No weights, no network."""

from __future__ import annotations

import json
import math
import tomllib
from contextlib import chdir
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from example_packages import ROOT
from published_targets import PUBLISHED, TARGETS, Published, draft_shapes
from typer.testing import CliRunner

from specdec_core.algorithm.base import TrainedAlgorithm
from specdec_core.algorithm.draft import Draft
from specdec_core.capture.features import CapturePlan
from specdec_core.cli.main import app
from specdec_core.config.run import RunConfig
from specdec_core.data.vocab import VocabMap
from specdec_core.registry.registry import Registry
from specdec_core.registry.resolve import resolve_file
from specdec_core.target.hf import HFTarget

CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
EAGLE3 = [config for config in CONFIGS if "_eagle3" in config.stem]
SLOTS = 6
TABLE_HEAD = "| name | target | backbone | captured | EAGLE-3 | Medusa |"

each_target = pytest.mark.parametrize("of", TARGETS, ids=lambda of: of.name)
each_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)


def published(config: Path) -> Published:
    """The target that a config is for: the config's name begins with the target's."""
    return next(of for of in TARGETS if config.stem.startswith(f"{of.name}_"))


@dataclass(frozen=True)
class Built:
    """What a config asks for, on the meta device."""

    run: RunConfig
    algorithm: TrainedAlgorithm
    of: Published
    target: HFTarget
    plan: CapturePlan
    draft_config: dict[str, Any]
    vocab: VocabMap | None
    draft: Draft


@cache
def load(of: Published) -> HFTarget:
    """Several configs share a target."""
    return of.load()


@pytest.fixture
def built(config: Path) -> Built:
    """The config's draft, made as a run makes it before it reads data."""
    resolved, target = resolve_file(config, [], Registry.discover()), load(published(config))
    run, facts, algorithm = resolved.config, target.facts, resolved.algorithm.load()
    with chdir(ROOT):
        draft_config = algorithm.draft_config(facts, run.draft)
    vocab = None
    if run.draft.vocab_size is not None:
        vocab = VocabMap.from_counts(torch.zeros(facts.vocab_size), run.draft.vocab_size, facts.stop_token_ids)
    with torch.device("meta"):
        draft = algorithm.build_draft(draft_config, target, vocab)
    plan = algorithm.capture_plan(facts)
    return Built(run, algorithm, published(config), target, plan, draft_config, vocab, draft)


def test_no_file_is_missing_and_none_left_over() -> None:
    assert {file.stem for file in PUBLISHED.glob("*.json")} == {of.name for of in TARGETS}
    stems = {config.stem for config in CONFIGS}
    assert {f"{of.name}_{algorithm}" for of in TARGETS for algorithm in ("eagle3", "medusa")} <= stems
    drafts = [tomllib.loads(config.read_text(encoding="utf-8")).get("draft", {}) for config in CONFIGS]
    assert {ROOT / draft["config"] for draft in drafts if "config" in draft} == {*(ROOT / "configs").glob("*.json")}


@each_config
def test_a_config_is_valid_and_is_what_its_name_says(config: Path) -> None:
    result = CliRunner().invoke(app, ["config", "check", str(config)])
    assert result.exit_code == 0, result.output
    run, of = resolve_file(config, [], Registry.discover()).config, published(config)
    assert (run.target.path, run.backbone.name) == (of.path, of.backbone)
    assert config.stem.startswith(f"{of.name}_{run.algorithm.name}")
    assert run.train.output_dir == Path("runs") / config.stem
    dtype = "float32" if run.target.path.startswith("package:") else "bfloat16"
    assert run.target.dtype == run.train.dtype == dtype


@each_target
def test_a_target_is_the_published_one(of: Published) -> None:
    target = load(of)
    assert sum(parameter.numel() for parameter in target.model.parameters()) == of.parameters
    facts, hidden, vocab = target.facts, of.text["hidden_size"], of.text["vocab_size"]
    for key in ("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "num_key_value_heads"):
        assert getattr(facts, key) == of.text[key], key
    assert (facts.num_layers, facts.head_dim) == (of.text["num_hidden_layers"], of.head_dim)
    assert facts.rope_parameters.get("mrope_section") == of.sections
    assert of.stop_tokens <= {*facts.stop_token_ids}
    assert target.embedding().weight.shape == target.head().weight.shape == (vocab, hidden)
    assert (target.embedding().weight is target.head().weight) == facts.tie_word_embeddings


@each_config
def test_the_draft_reads_what_is_captured(config: Path, built: Built) -> None:
    """The target is run, without numbers, and the draft from the captured states to its logits."""
    facts, width = built.target.facts, 1
    if built.run.algorithm.name == "eagle3":
        layers = built.run.algorithm.options.get("layers", [2, facts.num_layers // 2, facts.num_layers - 3])
        _, named, ids = config.stem.partition("_layers_")
        assert not named or layers == [int(id) for id in ids.split("_")]
        assert built.plan.layers == tuple(layers)
        assert built.draft_config["eagle_aux_hidden_state_layer_ids"] == layers
        width = len(layers)
    tokens = torch.zeros(1, SLOTS, dtype=torch.int64, device="meta")
    mask = torch.zeros(1, 1, SLOTS, SLOTS, device="meta")
    inputs = {"input_ids": tokens, "position_ids": tokens, "attention_mask": mask}
    _, features = built.target.run(inputs, built.plan, use_cache=False)
    assert features.last_hidden is not None
    hidden = features.stacked() if features.hidden else features.last_hidden
    assert hidden.shape == (1, SLOTS, width * facts.hidden_size)
    logits = built.draft.compute_logits(built.draft.project_hidden_states(hidden))
    assert logits.shape[-2:] == (SLOTS, built.run.draft.vocab_size or facts.vocab_size)


@each_config
def test_the_draft_has_the_weights_that_its_paper_says(config: Path, built: Built) -> None:
    found = {name: tuple(parameter.shape) for name, parameter in built.draft.named_parameters()}
    assert found == draft_shapes(built.of, built.run)
    assert all(parameter.is_meta for parameter in built.draft.parameters())


@pytest.mark.parametrize("config", EAGLE3, ids=lambda config: config.stem)
def test_the_draft_rotates_as_the_target_does(config: Path, built: Built) -> None:
    theirs = type(built.target.decoder().rotary_emb)(built.target.text_config)
    ours = built.draft.rotary
    torch.testing.assert_close(ours.inv_freq, theirs.inv_freq, rtol=1e-6, atol=0)
    assert ours.scaling == theirs.attention_scaling
    assert ours.num_axes == len(built.of.sections or [built.of.head_dim // 2])


@each_config
def test_the_vocabulary_map_is_of_the_size_asked_for(config: Path, built: Built) -> None:
    assert (built.vocab is None) == (built.run.draft.vocab_size is None)
    if built.vocab is not None:
        assert built.vocab.d2t.numel() == built.draft_config["draft_vocab_size"] == built.run.draft.vocab_size
        assert built.vocab.t2d.numel() == built.of.text["vocab_size"]
        assert built.of.stop_tokens <= {*built.vocab.ids.tolist()}


@pytest.mark.parametrize("config", [ROOT / "configs" / "qwen2_5_vl_32b_eagle3.toml"], ids=lambda config: config.stem)
def test_a_draft_json_as_shipped_says_what_would_be_derived(config: Path, built: Built) -> None:
    said = json.loads(config.with_suffix(".json").read_text(encoding="utf-8"))
    without = built.run.draft.model_copy(update={"config": None})
    derived = built.algorithm.draft_config(built.target.facts, without)
    # These two come with the tokenizer, and the published one is not here.
    derived |= {key: built.of.text[key] for key in ("bos_token_id", "eos_token_id")}
    assert said.items() <= derived.items()
    assert built.draft_config == derived


def test_the_table_of_shipped_configs_is_right() -> None:
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    _, _, table = page.partition(
        "| name | target | backbone | captured | EAGLE-3 | Medusa |\n|---|---|---|---|---|---|\n"
    )
    assert sorted(table.partition("\n\n")[0].splitlines()) == sorted(map(documented, TARGETS))


def documented(of: Published) -> str:
    """A target's row of the table."""
    eagle3, medusa = (
        RunConfig.model_validate(tomllib.loads((ROOT / "configs" / f"{of.name}_{algorithm}.toml").read_text()))
        for algorithm in ("eagle3", "medusa")
    )
    count = of.text["num_hidden_layers"]
    layers = eagle3.algorithm.options.get("layers", (2, count // 2, count - 3))
    sizes = [sum(map(math.prod, draft_shapes(of, run).values())) / 1e6 for run in (eagle3, medusa)]
    cells = [f"`{of.name}`", f"`{of.path}`", f"`{of.backbone}`", ", ".join(map(str, layers))]
    return " | ".join(["", *cells, *(f"{millions:,.0f} M" for millions in sizes), ""]).strip()
