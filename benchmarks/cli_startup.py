"""Wall time of the commands that must be quick, with 30 plugins installed.

    python benchmarks/cli_startup.py [--plugins 30] [--repeat 15]

Makes that many distributions in a temporary directory, each with an entry point module and an options model, and
prints wall and CPU time of each command, each run in a process of its own, beside bare `python`. On a machine that
does other work at the time, look at the CPU time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ENTRY = """
from specdec_core.registry.hooks import hookimpl
from specdec_core.registry.specs import PluginSpec

@hookimpl
def specdec_plugins():
    return [PluginSpec({kind!r}, {name!r}, "A plugin", "absent:Class", config="{module}_options:Options")]
"""
OPTIONS = """
from specdec_core.config.run import Section

class Options(Section):
    steps: int = 3
"""
CONFIG = 'backbone = "bench0"\nalgorithm = "bench1"\n[target]\npath = "somewhere"\n'


def install(site: Path, count: int) -> None:
    for index in range(count):
        name, module = f"bench{index}", f"specdec_bench{index}"
        info = site / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[specdec.plugins]\n{name} = {module}\n")
        kind = "algorithm" if index % 2 else "backbone"
        (site / f"{module}.py").write_text(ENTRY.format(kind=kind, name=name, module=module))
        (site / f"{module}_options.py").write_text(OPTIONS)


def seconds(command: list[str], site: Path) -> tuple[float, float]:
    """Wall and CPU seconds of one run."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))}
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, cwd=site, env=environment, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, os.times()
    return wall, sum(after[2:4]) - sum(before[2:4])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plugins", type=int, default=30)
    parser.add_argument("--repeat", type=int, default=15)
    arguments = parser.parse_args()

    specdec = [sys.executable, "-m", "specdec_core"]
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "specdec --help": [*specdec, "--help"],
        "specdec plugins list": [*specdec, "plugins", "list"],
        "specdec config check": [*specdec, "config", "check", "run.toml", "train.lr=3e-4"],
    }
    with tempfile.TemporaryDirectory() as directory:
        site = Path(directory)
        install(site, arguments.plugins)
        (site / "run.toml").write_text(CONFIG)
        print(f"{arguments.plugins} plugins, {arguments.repeat} runs, load {os.getloadavg()[0]:.1f}")
        for name, command in commands.items():
            seconds(command, site)
            wall, cpu = zip(*(seconds(command, site) for _ in range(arguments.repeat)), strict=True)
            print(
                f"{name:22} median {statistics.median(wall):.3f} s, fastest {min(wall):.3f} s, "
                f"CPU {statistics.median(cpu):.2f} s"
            )


if __name__ == "__main__":
    main()
