"""The fixtures of the core's tests."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import toy_plugin
from shared_fixtures import conversations_file, family_dir, tiny_target, tiny_target_dir

from specdec_core.config.run import TargetSection

if TYPE_CHECKING:
    from specdec_causal_lm.target import CausalLMTarget

__all__ = ["conversations_file", "family_dir", "tiny_target", "tiny_target_dir"]

pytest.register_assert_rewrite("toy_runs")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny matrices run slower on several threads than on one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def load(family_dir: Callable[[str], Path]) -> Callable[..., CausalLMTarget]:
    """(family, attention) -> a tiny target of that family, loaded through the causal-lm backbone."""
    from specdec_causal_lm.backbone import CausalLMBackbone
    from specdec_causal_lm.config import CausalLMConfig

    loaded: dict[tuple[str, str], CausalLMTarget] = {}

    def target(family: str, attention: str = "sdpa") -> CausalLMTarget:
        if (family, attention) not in loaded:
            section = TargetSection(path=str(family_dir(family)), attention=attention)
            loaded[family, attention] = CausalLMBackbone(CausalLMConfig()).load(section, "cpu")
        return loaded[family, attention]

    return target


@pytest.fixture(scope="session")
def plain(family_dir: Callable[[str], Path]) -> Callable[[str], Any]:
    """family -> transformers' own model of the same weights, with eager attention."""
    from transformers import AutoModelForCausalLM

    models: dict[str, Any] = {}

    def model(family: str) -> Any:
        if family not in models:
            loaded = AutoModelForCausalLM.from_pretrained(family_dir(family), attn_implementation="eager")
            models[family] = loaded.eval().requires_grad_(False)
        return models[family]

    return model


@pytest.fixture(scope="session")
def toy_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the toy distribution is installed."""
    return toy_plugin.install(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def toy(toy_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy distribution is installed in this process."""
    monkeypatch.syspath_prepend(toy_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one and a half megabytes."""
    path = tmp_path / "small-disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1536k", "tmpfs", str(path)]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)
