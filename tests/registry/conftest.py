"""Real distributions on a real path: a directory with *.dist-info and modules, as pip would install them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


ENTRY = """
from specdec_core.registry.hooks import hookimpl
from specdec_core.registry.specs import PluginSpec

@hookimpl
def specdec_plugins():
    return [PluginSpec({arguments})]
"""


@dataclass
class Site:
    """A directory of installed distributions."""

    path: Path
    work: Path

    def add(self, distribution: str, source: str, version: str = "1.0") -> str:
        """Install a distribution whose entry point is one module with this source. Returns the module's name."""
        module = distribution.replace("-", "_") + "_entry"
        info = self.path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(
            f"[specdec.plugins]\n{distribution.removeprefix('specdec-')} = {module}\n"
        )
        self.module(module, source)
        return module

    def provide(self, distribution: str, kind: str, name: str, version: str = "1.0", **fields: object) -> str:
        """Install a distribution that provides one plugin, whose class cannot be imported unless `fields` say so."""
        every = {"kind": kind, "name": name, "summary": f"The {name}", "implementation": "absent.code:Class", **fields}
        return self.add(
            distribution, ENTRY.format(arguments=", ".join(f"{k}={v!r}" for k, v in every.items())), version
        )

    def module(self, name: str, source: str) -> None:
        """Write a module."""
        (self.path / f"{name}.py").write_text(textwrap.dedent(source))

    def registry(self, text: str) -> Path:
        """Write the project's registry.toml."""
        path = self.work / "registry.toml"
        path.write_text(textwrap.dedent(text))
        return path

    def config(self, text: str) -> Path:
        """Write a run config."""
        path = self.work / "run.toml"
        path.write_text(textwrap.dedent(text))
        return path

    def specdec(self, *arguments: str, prelude: str = "") -> subprocess.CompletedProcess[str]:
        """Run the command in a process of its own."""
        code = f"{prelude}\nfrom specdec_core.cli.main import main\nmain()"
        path = os.pathsep.join([str(self.path), str(REPOSITORY)])
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=self.work,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An empty site on sys.path, and an empty working directory and user configuration."""
    site = Site(tmp_path / "site", tmp_path / "work")
    site.path.mkdir()
    site.work.mkdir()
    monkeypatch.chdir(site.work)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("SPECDEC_REGISTRY", raising=False)
    monkeypatch.syspath_prepend(str(site.path))
    before = set(sys.modules)
    yield site
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def working(site: Site) -> Site:
    """A site with an algorithm `alpha` that has options and a backbone `beta` that has none."""
    options = """
    from pydantic import Field
    from specdec_core.config.run import Section

    class Inner(Section):
        size: int = 3

    class Options(Section):
        steps: int = Field(7, ge=1, description="Training steps.")
        inner: Inner = Inner()
    """
    implementation = """
    class Alpha:
        def __init__(self, options):
            self.options = options
    """
    site.module("alpha_options", options)
    site.module("alpha_code", implementation)
    site.provide(
        "specdec-alpha",
        "algorithm",
        "alpha",
        implementation="alpha_code:Alpha",
        config="alpha_options:Options",
    )
    site.provide("specdec-beta", "backbone", "beta")
    return site
