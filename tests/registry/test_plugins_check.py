"""`specdec plugins check`: the contract of an installed plugin, from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from specdec_core.cli.check import contract_source
from specdec_core.cli.main import app
from specdec_core.testing import AlgorithmContract, BackboneContract

LOSSY = """
import os

from pydantic import BaseModel, ConfigDict

from specdec_core.export.hf import WEIGHTS, HFExporter


class Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    drop: bool = False


class Lossy(HFExporter):
    def write(self, exported, out, run):
        super().write(exported, out, run)
        if self.options.drop:
            os.remove(out / WEIGHTS)
"""


@pytest.fixture
def lossy(site: Any) -> Any:
    """An exporter that loses the weights, if told to."""
    site.module("lossy", LOSSY)
    site.module(
        "lossy_options",
        LOSSY.partition("from specdec_core")[0] + LOSSY[LOSSY.index("class O") : LOSSY.index("class L")],
    )
    site.provide("specdec-lossy", "exporter", "lossy", implementation="lossy:Lossy", config="lossy_options:Options")
    return site


def test_a_plugin_that_keeps_its_promises_passes_and_one_that_breaks_some_does_not(lossy: Any) -> None:
    kept = lossy.specdec("plugins", "check", "lossy")
    assert kept.returncode == 0, kept.stdout + kept.stderr
    assert " passed" in kept.stdout
    broken = lossy.specdec("plugins", "check", "lossy", "drop=true")
    assert broken.returncode == 1
    assert "written-whole is broken by exporter lossy." in broken.stdout
    assert "See docs/contracts.md#written-whole" in broken.stdout
    assert " failed" in broken.stdout
    waived = ["--waive", "written-whole", "--waive", "all-or-nothing", "--waive", "provenance"]
    kept = lossy.specdec("plugins", "check", "lossy", "drop=true", *waived)
    assert kept.returncode == 0, kept.stdout + kept.stderr
    assert " skipped" in kept.stdout
    assert not list(lossy.work.iterdir())


def test_an_algorithm_is_checked_with_a_draft_vocabulary_and_without_what_is_waived(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sources = []

    def kept(arguments: list[str]) -> pytest.ExitCode:
        sources.extend(Path(file).read_text() for file in arguments if file.endswith(".py"))
        return pytest.ExitCode.OK

    monkeypatch.setattr(pytest, "main", kept)
    command = ["plugins", "check", "eagle3", "steps=2", "--vocab-size", "90", "--waive", "masked-tokens"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = {}
    exec(sources[0], found)
    contract = found["TestAlgorithm"]
    assert issubclass(contract, AlgorithmContract)
    assert (contract.name, contract.options, contract.vocab_size) == ("eagle3", {"steps": 2}, 90)
    assert contract.waived == {"masked-tokens": "by --waive"}
    assert contract.trained().sayable.numel() == 90


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["torch"], '"torch" has no contract to keep: of the kinds of plugins, algorithm, backbone, exporter have one'),
        (["lossi"], 'there is no plugin "lossi". Did you mean "lossy"? `specdec plugins list` shows all.'),
        (["lossy", "drop=maybe"], 'exporter.drop: found "maybe"; allowed: true or false.'),
        (["lossy", "dorp=true"], 'exporter.dorp: unknown key (found true). Did you mean "drop"? Allowed keys: drop.'),
        (["lossy", "drop"], "command line: `drop` is not of the form section.key=value"),
        (["lossy", "--vocab-size", "64"], '--vocab-size is the size of a draft vocabulary; exporter "lossy" has none'),
        (["lossy", "--waive", "provenence"], '--waive: there is no promise "provenence". Did you mean "provenance"?'),
        (["broken"], "specdec-broken 1.0 failed to load: RuntimeError: boom"),
        (["absent"], 'exporter "absent": not installed: pip install specdec-absent.'),
        (["twice"], 'exporter "twice" is provided by specdec-twice-a 1.0 and specdec-twice-b 1.0. Choose one: put'),
        (["hollow"], "exporter hollow of specdec-hollow 1.0 cannot be loaded: ModuleNotFoundError: No module named"),
        (["half"], "half:Half of specdec-half 1.0 does not implement write; this is a fault of that plugin."),
        (["beta"], 'backbone "beta" is tested with a model of its family: name one with --target DIR'),
        (["beta", "--target", "nowhere"], "--target: there is no directory nowhere"),
    ],
)
def test_what_cannot_be_checked_is_refused(lossy: Any, arguments: list[str], sentence: str) -> None:
    lossy.add("specdec-broken", "raise RuntimeError('boom')")
    lossy.provide("specdec-beta", "backbone", "beta")
    lossy.module("half", "from specdec_core.export.base import Exporter\nclass Half(Exporter): pass")
    lossy.provide("specdec-half", "exporter", "half", implementation="half:Half")
    lossy.provide("specdec-hollow", "exporter", "hollow")
    for letter in "ab":
        lossy.provide(f"specdec-twice-{letter}", "exporter", "twice")
    lossy.registry('[plugins.specdec-absent]\nprovides = ["exporter.absent"]\n')
    refused = lossy.specdec("plugins", "check", *arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"error: {sentence}")
    assert len(refused.stderr.splitlines()) == 1


def test_without_pytest_it_says_what_to_install(lossy: Any) -> None:
    refused = lossy.specdec("plugins", "check", "lossy", prelude="import sys; sys.modules['pytest'] = None")
    assert (refused.returncode, refused.stderr) == (
        2,
        'error: the contracts are tests for pytest, which is not installed: pip install "specdec-core[testing]"\n',
    )


def test_a_backbone_is_given_the_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    found: dict[str, Any] = {}
    exec(contract_source("backbone", "causal-lm", {"options": {"tokenizer": "there"}}, tmp_path / "model"), found)
    contract = found["TestBackbone"]
    assert issubclass(contract, BackboneContract)
    assert (contract.name, contract.options) == ("causal-lm", {"tokenizer": "there"})
    (tmp_path / "made").mkdir()
    contract().make_target(tmp_path / "made")
    assert (tmp_path / "made" / "config.json").read_text() == "{}"


@pytest.mark.slow
def test_a_backbone_is_checked_with_the_model_given(tiny_target_dir: Path, site: Any) -> None:
    done = site.specdec("plugins", "check", "causal-lm", "--target", str(tiny_target_dir))
    assert done.returncode == 0, done.stdout + done.stderr
