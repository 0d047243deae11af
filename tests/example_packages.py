"""The packages of the documentation, as pip would install them, without pip."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
HYDRA = ROOT / "examples" / "specdec-hydra"


def install_hydra(directory: Path) -> None:
    """The example of docs/algorithm.md."""
    shutil.copytree(HYDRA / "src", directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    install_metadata((HYDRA / "pyproject.toml").read_text(encoding="utf-8"), directory)


def install_metadata(pyproject: str, directory: Path) -> None:
    """Name, version and entry points of a distribution."""
    project = tomllib.loads(pyproject)["project"]
    info = directory / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = project["entry-points"]["specdec.plugins"]
    lines = [f"{key} = {value}" for key, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[specdec.plugins]", *lines]))
