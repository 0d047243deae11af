"""GGUF files: dequantised once into a directory that transformers loads at full speed."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from specdec_core.errors import UserError

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

FORMAT = 1
SAMPLE = 1 << 20

# The names that llama.cpp gives to pre-tokenizers (`tokenizer.ggml.pre`), by what they do.
SINGLE_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
SPLITS = {
    "llama-bpe": r"\p{N}{1,3}",
    "llama3": r"\p{N}{1,3}",
    "llama-v3": r"\p{N}{1,3}",
    "qwen2": r"\p{N}",
}
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def converted(file: Path, dtype: str, cache_dir: Path | None = None) -> Path:
    """A directory with the file's weights as safetensors of `dtype`, its config and its tokenizer.

    Made on the first call and found again by the file's size, time and first and last MiB. It is written
    aside and then renamed. Raises UserError if the file is damaged or of an unknown architecture.
    """
    import platformdirs

    root = cache_dir or Path(platformdirs.user_cache_dir("specdec")) / "gguf"
    directory = root / f"{file.stem}-{fingerprint(file)}-{dtype}"
    if (directory / "config.json").is_file():
        return directory
    try:
        root.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".converting-", dir=root))
    except OSError as error:
        raise UserError(f"{root}: cannot be written ({error.strerror}); set backbone.cache_dir") from error
    try:
        _convert(file, dtype, aside)
        try:
            aside.rename(directory)
        except OSError:
            if not (directory / "config.json").is_file():  # another process was quicker
                raise
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{root}: converting {file.name} failed ({error}); free space or set backbone.cache_dir"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return directory


def fingerprint(file: Path) -> str:
    """A short digest of the file's size, time, first and last MiB, and of the conversion's version."""
    stat = file.stat()
    digest = hashlib.sha256(f"{FORMAT}/{stat.st_size}/{stat.st_mtime_ns}".encode())
    with file.open("rb") as stream:
        digest.update(stream.read(SAMPLE))
        stream.seek(max(stat.st_size - SAMPLE, 0), os.SEEK_SET)
        digest.update(stream.read(SAMPLE))
    return digest.hexdigest()[:16]


def pre_tokenizer(name: str | None) -> PreTokenizer | None:
    """The byte-level pre-tokenizer that llama.cpp calls `name`; None if transformers' own guess is to stand.

    Transformers (5.23) reads vocabulary and merges of a GGUF file but not how it splits text.
    """
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    if name in SINGLE_DIGITS:
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)])
    if name in SPLITS:
        split = Split(Regex(SPLIT.replace("NUMBER", SPLITS[name])), behavior="isolated")
        return Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    return None


def _convert(file: Path, dtype: str, directory: Path) -> None:
    """Write the file's model and tokenizer into `directory`."""
    try:
        import accelerate  # type: ignore[import-untyped]  # noqa: F401
        from gguf import GGUFReader
    except ImportError as error:
        raise UserError(
            f"{file.name} is a GGUF file; reading it needs two more packages: run `pip install gguf accelerate`"
        ) from error
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder, name = str(file.parent), file.name
    try:
        metadata = _metadata(GGUFReader(file))
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=name, dtype=getattr(torch, dtype), quantization_config=GgufConfig(dequantize=True)
        )
    except (ValueError, KeyError, IndexError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{file} cannot be read as GGUF: {error}") from error
    split = pre_tokenizer(metadata.get("tokenizer.ggml.pre"))
    if split is not None:
        tokenizer.backend_tokenizer.pre_tokenizer = split
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    epsilon = metadata.get(f"{metadata.get('general.architecture')}.attention.layer_norm_rms_epsilon")
    if epsilon is not None:
        # GGUF keeps it in float32, where 1e-5 reads 9.9999997e-06.
        model.config.rms_norm_eps = float(f"{epsilon:.6g}")
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _metadata(reader: Any) -> dict[str, Any]:
    """The file's scalar fields by key."""
    wanted = ("general.", "tokenizer.ggml.pre", ".layer_norm_rms_epsilon")
    return {key: field.contents() for key, field in reader.fields.items() if any(part in key for part in wanted)}
