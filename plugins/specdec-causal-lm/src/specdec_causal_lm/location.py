"""From `target.path` to something that transformers can load, GGUF files included."""

from __future__ import annotations

from pathlib import Path

from specdec_causal_lm.config import CausalLMConfig
from specdec_causal_lm.gguf import converted
from specdec_core.config.run import TargetSection
from specdec_core.errors import UserError
from specdec_core.target.hf_load import Location, local_path, not_there, unreachable


def locate(target: TargetSection, options: CausalLMConfig) -> Location:
    """Find the target's files, converting a GGUF file the first time. Raises UserError if there is no such target.

    `target.path` may be a directory, a .gguf file, a Hub id, or `package:NAME/FILE` for a file of an
    installed Python package.
    """
    path = local_path(target)
    if path is not None:
        return _local(path, target, options)
    if target.path.endswith(".gguf"):
        raise not_there(target)
    return _hub(target, options)


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
