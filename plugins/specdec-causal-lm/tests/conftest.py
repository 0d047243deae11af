"""A tiny target of this plugin's own tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import save_model


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with its tokenizer."""
    directory = tmp_path_factory.mktemp("llama")
    save_model("llama", directory)
    return directory
