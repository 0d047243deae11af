"""What every backbone of transformers models shares. A family's plugin says what differs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import AutoModelForCausalLM

from specdec_core.config.run import TargetSection
from specdec_core.errors import UserError
from specdec_core.target import hf_facts
from specdec_core.target.base import Backbone, Target, TargetFacts
from specdec_core.target.hf import HFTarget
from specdec_core.target.hf_load import (
    Location,
    load_config,
    load_generation_config,
    load_model,
    load_tokenizer,
    locate,
    without_progress_bars,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROLLED_BACK = frozenset({"full_attention", "sliding_attention"})
"""The types of layers whose state is a cache that can be cut."""


class HFBackbone(Backbone):
    """Facts, tokenizer and weights of models that transformers loads. Made with an `HFOptions`.

    `name`         the plugin's name, as errors say it
    `model_types`  the `model_type`s of config.json that it serves; empty: all that transformers has
    `auto_model`   the class of transformers that loads them
    `target_type`  what a loaded one is
    """

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]] = ()
    auto_model: ClassVar[Any] = AutoModelForCausalLM
    target_type: ClassVar[type[HFTarget]] = HFTarget

    # What a family may override.

    def locate(self, target: TargetSection) -> Location:
        """Where the target's files are. Raises UserError if there is no such target."""
        return locate(target)

    def read_facts(self, target: TargetSection, config: Any, generation: Any, tokenizer: Any) -> TargetFacts:
        """The facts from a transformers config, a generation config or None, and the tokenizer."""
        return hf_facts.read_facts(target, config, generation, tokenizer)

    def attention(self, target: TargetSection, config: Any) -> str:
        """The attention implementation to load with."""
        return target.attention

    def wrap(
        self,
        target: TargetSection,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: TargetFacts,
        device: str,
    ) -> HFTarget:
        """The loaded model as a target."""
        return self.target_type(model, tokenizer, facts, device)

    # The contract.

    def facts(self, target: TargetSection) -> TargetFacts:
        """What the target's config says, without loading weights. Raises UserError if there is no such target."""
        where = self.locate(target)
        config = self._config(target, where)
        return self.read_facts(target, config, load_generation_config(where), self.tokenizer(target))

    def tokenizer(self, target: TargetSection) -> PreTrainedTokenizerBase:
        """The target's tokenizer with its chat template."""
        return load_tokenizer(target, self._of_the_text(target))

    def load(self, target: TargetSection, device: str) -> HFTarget:
        """The target with its weights, frozen, in evaluation mode."""
        where = self.locate(target)
        config = self._config(target, where)
        tokenizer = self.tokenizer(target)
        facts = self.read_facts(target, config, load_generation_config(where), tokenizer)
        model = load_model(self.auto_model, target, where, config, self.attention(target, config))
        return self.wrap(target, model, tokenizer, facts, device)

    def module(self, target: Target) -> PreTrainedModel:
        """The transformers model of a target loaded here."""
        assert isinstance(target, HFTarget)
        return target.model

    def save(self, target: Target, directory: Path) -> None:
        """Write the model and its tokenizer as a directory that transformers loads; read it back and compare."""
        assert isinstance(target, HFTarget)
        with without_progress_bars():
            target.save(directory)

    def _of_the_text(self, target: TargetSection) -> Location:
        """Where the tokenizer is, and what else turns input into tokens."""
        named = self.options.tokenizer
        return self.locate(target) if named is None else Location(named, None, is_local=Path(named).is_dir())

    def _config(self, target: TargetSection, where: Location) -> Any:
        config = load_config(target, where)
        if self.model_types and config.model_type not in self.model_types:
            raise UserError(
                f"target.path = {target.path!r}: backbone {self.name} serves models of type "
                f"{', '.join(self.model_types)}, and this one is of type {config.model_type}; choose another backbone"
            )
        text = config.get_text_config(decoder=True)
        if strange := sorted(set(getattr(text, "layer_types", None) or ()) - ROLLED_BACK):
            raise UserError(
                f"target.path = {target.path!r}: layers of type {strange[0]} keep a state that cannot be rolled back; "
                f"backbone {self.name} serves attention layers only"
            )
        return config
