"""Tiny targets and a few conversations, for tests of the core and of plugins; made once a session.

Each `conftest.py` imports the fixtures that its tests use.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import save_model

from specdec_core.config.run import TargetSection
from specdec_core.target.base import Target
from specdec_core.testing.tokenizer import sentences


@pytest.fixture(scope="session")
def tiny_target_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 8 layers (H 64, 4 heads, 2 key-value heads, V 512) in float32, with its tokenizer."""
    directory = tmp_path_factory.mktemp("tiny-target")
    save_model("llama", directory)
    return directory


@pytest.fixture(scope="session")
def tiny_target(tiny_target_dir: Path) -> Target:
    """`tiny_target_dir`, loaded through the causal-lm backbone."""
    from specdec_causal_lm.backbone import CausalLMBackbone
    from specdec_causal_lm.config import CausalLMConfig

    return CausalLMBackbone(CausalLMConfig()).load(TargetSection(path=str(tiny_target_dir)), "cpu")


@pytest.fixture(scope="session")
def family_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """family -> a directory with a tiny random model of it (see `tiny_models`)."""
    made: dict[str, Path] = {}

    def directory(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            save_model(family, made[family])
        return made[family]

    return directory


@pytest.fixture(scope="session")
def conversations_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSONL of 40 conversations of one to three exchanges."""
    path = tmp_path_factory.mktemp("data") / "conversations.jsonl"
    rng = random.Random(1)
    with path.open("w") as file:
        for index in range(40):
            texts = sentences(2 * rng.randint(1, 3), seed=index + 2)
            roles = ["user", "assistant"] * (len(texts) // 2)
            turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
            file.write(json.dumps({"id": f"c{index}", "conversations": turns}) + "\n")
    return path
