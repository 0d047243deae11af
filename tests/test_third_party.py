"""A stranger writes an algorithm: with wheels alone, in an environment of their own, without network or repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import VOCAB, save_model, save_tokenizer

ROOT = Path(__file__).parents[1]
OFFLINE = ["--no-index", "--no-deps", "--disable-pip-version-check", "--quiet"]


@dataclass(frozen=True)
class Stranger:
    """A virtual environment with the dependencies of specdec and none of its code, and a directory to work in."""

    environment: Path
    home: Path

    @property
    def python(self) -> Path:
        return self.environment / "bin" / "python"

    def pip(self, *arguments: str | Path) -> None:
        """The tests' own pip, at work in the stranger's environment."""
        done = self._run([sys.executable, "-m", "pip", "--python", self.python, *arguments])
        assert done.returncode == 0, done.stderr

    def build(self, *projects: Path) -> list[Path]:
        """Wheels of projects, in `home/wheels`."""
        wheels = self.home / "wheels"
        before = set(wheels.glob("*.whl"))
        command = [sys.executable, "-m", "pip", "wheel", *OFFLINE, "--no-build-isolation", "-w", wheels, *projects]
        done = self._run(command)
        assert done.returncode == 0, done.stderr
        return sorted(set(wheels.glob("*.whl")) - before)

    def specdec(self, *arguments: str | Path) -> str:
        """What a command that must succeed prints."""
        done = self._run([self.environment / "bin" / "specdec", *arguments])
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refusal(self, *arguments: str | Path) -> str:
        """The sentences of a command that must be refused."""
        done = self._run([self.environment / "bin" / "specdec", *arguments])
        assert done.returncode == 2
        assert all(line.startswith("error: ") for line in done.stderr.splitlines()), done.stderr
        return done.stderr

    def _run(self, command: list[str | Path]) -> subprocess.CompletedProcess[str]:
        kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH", "TMPDIR") if key in os.environ}
        variables = {"HOME": str(self.home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **kept}
        return subprocess.run(command, cwd=self.home, env=variables, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    """Before anything of specdec is installed."""
    directory = tmp_path_factory.mktemp("stranger")
    environment, dependencies = directory / "environment", directory / "dependencies"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    dependencies.mkdir()
    for site in (Path(entry) for entry in sys.path if entry.endswith("site-packages")):
        for installed in site.iterdir():
            ours = installed.name.startswith(("specdec", "_editable_impl_", "__editable__"))
            if not ours and installed.suffix != ".pth" and not (dependencies / installed.name).is_symlink():
                (dependencies / installed.name).symlink_to(installed)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(f"{dependencies}\n")
    (directory / "home").mkdir()
    return Stranger(environment, directory / "home")


def replace(file: Path, old: str, new: str) -> None:
    """One edit of a source file."""
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1, (file, old)
    file.write_text(text.replace(old, new), encoding="utf-8")


def make_it_its_own(package: Path) -> None:
    """The author's own idea: smoothed labels, by an option, and a metric of its own."""
    source = package / "src" / "specdec_my_algo"
    with (source / "config.py").open("a", encoding="utf-8") as file:
        file.write('    smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Of the labels.")\n')
    step, algorithm = source / "step.py", source / "algorithm.py"
    replace(
        step, "features: Features, denominator: Tensor)", "features: Features, denominator: Tensor, smoothing: float)"
    )
    replace(step, 'reduction="sum")', 'reduction="sum", label_smoothing=smoothing)')
    replace(
        step, "    return StepOutput(", "    confidence = logits.softmax(-1).amax(-1).sum()\n    return StepOutput("
    )
    replace(step, "slots.sum())})", 'slots.sum()), "confidence/1": Metric(confidence, slots.sum())})')
    replace(algorithm, "features, denominator)\n", "features, denominator, self.options.smoothing)\n")


def test_a_plugin_is_written_installed_trained_measured_exported_and_removed(stranger: Stranger) -> None:
    # Wheels of the core and of every plugin; nothing else of the repository is used from here on.
    plugins = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
    wheels = {wheel.name.partition("-")[0]: wheel for wheel in stranger.build(ROOT, *plugins)}
    assert wheels.keys() == {"specdec_core", *(plugin.name.replace("-", "_") for plugin in plugins)}
    stranger.pip("install", *OFFLINE, wheels["specdec_core"], wheels["specdec_causal_lm"])
    where = subprocess.run(
        [stranger.python, "-c", "import specdec_core; print(specdec_core.__file__)"],
        cwd=stranger.home, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert where.startswith(str(stranger.environment))
    target = stranger.home / "target"
    save_tokenizer(target, VOCAB)
    save_model("llama", target)

    # A package of one's own.
    stranger.specdec("plugins", "new", "my-algo", "--kind", "algorithm")
    package = stranger.home / "specdec-my-algo"
    make_it_its_own(package)
    (wheel,) = stranger.build(package)
    assert wheel.name == "specdec_my_algo-0.1.0-py3-none-any.whl"
    stranger.pip("install", *OFFLINE, wheel)
    rows = {row["name"]: row for row in json.loads(stranger.specdec("plugins", "list", "--json"))}
    assert (rows["my-algo"]["state"], rows["my-algo"]["provider"]) == ("active", "specdec-my-algo")
    assert rows["eagle3"]["state"] == "available"
    assert "smoothing (default 0.0): Of the labels." in stranger.specdec("plugins", "info", "my-algo")

    assert " failed" not in stranger.specdec("plugins", "check", "my-algo", "smoothing=0.1")

    # Its config, as it came, with the target and the new option.
    run, sample = stranger.home / "run", package / "sample.jsonl"
    config = package / "run.toml"
    overrides = [
        f"target.path={target}",
        f'data.train=["{sample}"]',
        f"train.output_dir={run}",
        "algorithm.smoothing=0.1",
    ]
    assert "algorithm my-algo (specdec-my-algo 0.1.0)" in stranger.specdec("config", "check", config, *overrides)
    stranger.specdec("train", config, *overrides)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert 0 < metrics[-1]["confidence/1"] <= 1
    assert tomllib.loads((run / "config.toml").read_text())["algorithm"]["smoothing"] == 0.1

    found: dict[str, Any] = json.loads(
        stranger.specdec("eval", run, "--prompts", sample, "--max-prompts", "3", "--max-new-tokens", "12", "--json")
    )
    assert [method["method"] for method in found["methods"]] == ["target alone", "draft"]
    assert found["methods"][1]["outputs"] == {"identical": 3}
    assert found["methods"][1]["tally"]["proposed"]
    stranger.specdec("export", run, "--out", stranger.home / "draft")
    written = sorted(path.name for path in (stranger.home / "draft").iterdir())
    assert written == ["config.json", "model.safetensors", "specdec.json"]
    assert json.loads((stranger.home / "draft" / "config.json").read_text())["architectures"] == ["MyAlgoDraft"]
    plain, trained = (load_file(place / "model.safetensors") for place in (stranger.home / "draft", run / "draft"))
    assert plain.keys() == {"inner.weight", "inner.bias", "outer.weight", "outer.bias"}
    assert all(torch.equal(tensor, trained[name]) and bool(tensor.any()) for name, tensor in plain.items())

    # Without it, its name is unknown; in a catalogue, it says what to install.
    stranger.pip("uninstall", "--quiet", "--yes", "specdec-my-algo")
    assert "my-algo" not in stranger.specdec("plugins", "list")
    refused = stranger.refusal("train", config, *overrides, "--resume")
    assert f'{config}: algorithm.name: there is no algorithm "my-algo". No algorithm is installed.' in refused
    mend = 'This run was made with specdec-my-algo 0.1.0: pip install "specdec-my-algo==0.1.0".'
    assert mend in refused
    for command in (["eval", run, "--prompts", sample], ["config", "show", run / "config.toml"]):
        refused = stranger.refusal(*command)
        assert 'there is no algorithm "my-algo"' in refused
        assert mend in refused
    assert 'pip install "specdec-eagle3>=0.1,<0.2"' in stranger.refusal(
        "config", "check", config, "algorithm.name=eagle3"
    )
    assert 'there is no algorithm "my-algo"' in stranger.refusal("export", run, "--out", stranger.home / "again")
    assert 'pip install "specdec-eagle3>=0.1,<0.2"' in stranger.refusal("plugins", "check", "eagle3")
    (stranger.home / "registry.toml").write_text(
        '[plugins.specdec-my-algo]\nversion = ">=0.1"\nprovides = ["algorithm.my-algo"]\n'
    )
    assert 'algorithm "my-algo": not installed: pip install "specdec-my-algo>=0.1"' in stranger.refusal(
        "config", "check", config, *overrides
    )

    # What the sentence says helps. All wheels together work.
    stranger.pip("install", *OFFLINE, wheel, *wheels.values())
    shipped = {plugin.name for plugin in plugins}
    listed = [row for row in json.loads(stranger.specdec("plugins", "list", "--json")) if row["provider"] in shipped]
    assert {row["provider"] for row in listed} == shipped
    assert all(row["state"] == "active" for row in listed), listed
    assert "algorithm my-algo (specdec-my-algo 0.1.0)" in stranger.specdec("config", "check", config, *overrides)
    assert "algorithm eagle3 (specdec-eagle3" in stranger.specdec(
        "config", "check", config, *overrides[:-1], "algorithm.name=eagle3"
    )
