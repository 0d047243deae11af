"""The `causal-lm` backbone: facts, tokenizer and weights of any decoder-only text model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from specdec_causal_lm.facts import read_facts
from specdec_causal_lm.location import Location, first_line, locate, unreachable
from specdec_causal_lm.target import CausalLMTarget
from specdec_core.config.run import TargetSection
from specdec_core.errors import UserError
from specdec_core.target.base import Backbone, Target, TargetFacts
from specdec_core.target.hf import HFTarget

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CausalLMBackbone(Backbone):
    """Made with a `CausalLMConfig`."""

    def facts(self, target: TargetSection) -> TargetFacts:
        """What the target's config says, without loading weights. Raises UserError if there is no such target."""
        where = locate(target, self.options)
        return read_facts(target, self._config(target, where), self._generation(where), self.tokenizer(target))

    def tokenizer(self, target: TargetSection) -> Any:
        """The target's tokenizer with its chat template."""
        if self.options.tokenizer is not None:
            name, revision = self.options.tokenizer, None
        else:
            where = locate(target, self.options)
            name, revision = where.name, where.revision
        try:
            return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=target.trust_remote_code)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{name}: no tokenizer can be loaded from there; set backbone.tokenizer; {first_line(error)}"
            ) from error

    def load(self, target: TargetSection, device: str) -> CausalLMTarget:
        """The target with its weights, frozen, in evaluation mode."""
        where = locate(target, self.options)
        config = self._config(target, where)
        tokenizer = self.tokenizer(target)
        facts = read_facts(target, config, self._generation(where), tokenizer)
        with _explained(target, where), _without_progress_bars():
            model, info = AutoModelForCausalLM.from_pretrained(
                where.name,
                revision=where.revision,
                config=config,
                dtype=getattr(torch, target.dtype),
                attn_implementation=_attention(target, config),
                trust_remote_code=target.trust_remote_code,
                ignore_mismatched_sizes=True,  # they are reported, and refused here by name
                output_loading_info=True,
            )
        if mismatched := sorted(info["mismatched_keys"]):
            name, found, expected = mismatched[0]
            raise UserError(
                f"target.path = {target.path!r}: config.json and the weights disagree: {name} has shape {list(found)}, "
                f"the config asks for {list(expected)}"
            )
        if missing := sorted(info["missing_keys"]):
            shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            raise UserError(f"target.path = {target.path!r}: the weights lack {shown}")
        loaded = CausalLMTarget(model, tokenizer, facts, device)
        loaded.check()
        return loaded

    def module(self, target: Target) -> PreTrainedModel:
        """The transformers model of a target loaded here."""
        assert isinstance(target, HFTarget)
        return target.model

    def save(self, target: Target, directory: Path) -> None:
        """Write the model and its tokenizer as a directory that transformers loads; read it back and compare."""
        assert isinstance(target, HFTarget)
        with _without_progress_bars():
            target.save(directory)

    def _config(self, target: TargetSection, where: Location) -> Any:
        try:
            with _explained(target, where):
                config = AutoConfig.from_pretrained(
                    where.name, revision=where.revision, trust_remote_code=target.trust_remote_code
                )
        except (TypeError, AttributeError, ArithmeticError, StrictDataclassError) as error:
            raise UserError(
                f"target.path = {target.path!r}: its config.json cannot be used: {' '.join(str(error).split())}"
            ) from error
        text = config.get_text_config(decoder=True)
        known = {"full_attention", "sliding_attention"}
        if strange := sorted(set(getattr(text, "layer_types", None) or ()) - known):
            raise UserError(
                f"target.path = {target.path!r}: layers of type {strange[0]} keep a state that cannot be rolled back; "
                "backbone causal-lm serves attention layers only"
            )
        return config

    def _generation(self, where: Location) -> Any:
        try:
            return transformers.GenerationConfig.from_pretrained(where.name, revision=where.revision)
        except (OSError, ValueError):
            return None


def _attention(target: TargetSection, config: Any) -> str:
    """`target.attention`, or eager where SDPA cannot do what the model does: cap the attention's logits."""
    capped = getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None)
    return "eager" if target.attention == "sdpa" and capped else target.attention


@contextmanager
def _explained(target: TargetSection, where: Location) -> Iterator[None]:
    """Turn what transformers raises for bad input into one sentence."""
    try:
        yield
    except SafetensorError as error:
        raise UserError(
            f"target.path = {target.path!r}: a weight file is damaged or cut off ({first_line(error)}); "
            "download it again"
        ) from error
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"target.path = {target.path!r} runs Python code of its own; "
                "read it, then set target.trust_remote_code = true"
            ) from error
        if not where.is_local and isinstance(error, OSError):
            raise unreachable(target, error) from error
        raise UserError(f"target.path = {target.path!r}: cannot be loaded: {first_line(error)}") from error


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Weights load in a moment; a bar for them would be noise in every command's output."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
