"""What vision-language models of transformers share: a vision tower whose output stands in for placeholder tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from specdec_core.config.run import TargetSection
from specdec_core.data.batch import PADDING_DOCUMENT, Batch
from specdec_core.errors import UserError
from specdec_core.target.base import TargetFacts
from specdec_core.target.hf import HFTarget
from specdec_core.target.hf_backbone import HFBackbone
from specdec_core.target.hf_media import HFMediaProcessor, load_processor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class HFVisionTarget(HFTarget):
    """A loaded model whose inner model merges images into the embeddings and runs the language model.

    A batch's `extras` are the model's own inputs for all its images and videos, and its positions those of
    `media.positions`, or [B, S] where it has none. Layer states are read before each layer, so that what the model adds
    to them between two layers is in them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: TargetFacts,
        media: HFMediaProcessor,
        device: str = "cpu",
    ) -> None:
        """`media` is how the target reads images."""
        super().__init__(model, tokenizer, facts, device)
        self.media = media

    def decoder(self) -> nn.Module:
        """The inner model, vision tower included."""
        inner: nn.Module = self.model.base_model
        return inner

    def layers(self) -> Sequence[nn.Module]:
        """The language model's layers in order."""
        layers: Sequence[nn.Module] = self.model.get_decoder().layers
        return layers

    def norm(self) -> nn.Module:
        """The norm after the language model's last layer."""
        norm: nn.Module = self.model.get_decoder().norm
        return norm

    def model_inputs(self, batch: Batch) -> dict[str, Any]:
        """The inner model's keyword arguments for a batch, documents apart."""
        padding = batch.document_ids == PADDING_DOCUMENT
        inputs = {
            # Padding may be any token, and no placeholder must be without its image.
            "input_ids": batch.ids.masked_fill(padding, self.model.generation_config.pad_token_id),
            "position_ids": batch.positions,
            **batch.extras,
        }
        if not self.knows_layouts:
            inputs["attention_mask"] = self._document_mask(batch)
        return inputs

    def prompt_inputs(
        self, prompts: Sequence[Sequence[int]], extras: Sequence[Mapping[str, Tensor]] = ()
    ) -> dict[str, Any]:
        """What the model's own `generate` is given; each prompt's positions are counted as if it stood alone."""
        inputs = super().prompt_inputs(prompts, extras)
        count = inputs["input_ids"].shape[1]
        alone = [
            self.media.positions(torch.tensor([*prompt]), {name: tensor.cpu() for name, tensor in own.items()})
            for prompt, own in zip(prompts, extras or [{}] * len(prompts), strict=True)
        ]
        padded = [nn.functional.pad(positions, (count - positions.shape[1], 0)) for positions in alone]
        return {**inputs, "position_ids": torch.stack(padded, dim=1).to(self.device)}

    def save(self, directory: Path) -> None:
        """Write what `from_pretrained` reads: config, weights in their own type, processor; read back and compared."""
        super().save(directory)
        self.media.processor.save_pretrained(directory)

    def _document_mask(self, batch: Batch) -> Tensor:
        """[B, 1, S, S], 0 where a slot sees another, else the lowest number: for attention that is told by a mask."""
        same = batch.document_ids[:, :, None] == batch.document_ids[:, None, :]
        sees = same.tril()[:, None]
        dtype = self.embedding().weight.dtype
        assert isinstance(dtype, torch.dtype)
        return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill(~sees, torch.finfo(dtype).min)


class HFVisionBackbone(HFBackbone):
    """Vision-language models that transformers loads. Made with an `HFVisionOptions`.

    `media_type`  how the family reads images and videos
    """

    auto_model: ClassVar[Any] = AutoModelForImageTextToText
    media_type: ClassVar[type[HFMediaProcessor]] = HFMediaProcessor

    def read_facts(self, target: TargetSection, config: Any, generation: Any, tokenizer: Any) -> TargetFacts:
        """Those of the language model, under the type of the whole."""
        facts = super().read_facts(target, config, generation, tokenizer)
        return replace(facts, model_type=config.model_type, merged_embeds=self.options.draft_embeds == "merged")

    def attention(self, target: TargetSection, config: Any) -> str:
        """`target.attention`. Raises UserError for one by which documents with images could not be kept apart."""
        kinds = getattr(config.get_text_config(decoder=True), "layer_types", None) or ()
        served = ["sdpa"] if "sliding_attention" in kinds else ["sdpa", "eager"]
        if target.attention not in served:
            raise UserError(
                f"target.attention = {target.attention!r}: backbone {self.name} serves this target with "
                f"{' or '.join(served)} only"
            )
        return target.attention

    def tokenizer(self, target: TargetSection) -> PreTrainedTokenizerBase:
        """The tokenizer of the target's processor, with its chat template."""
        processor = self.media(target).processor
        tokenizer: PreTrainedTokenizerBase = processor.tokenizer
        if processor.chat_template is not None:
            tokenizer.chat_template = processor.chat_template
        return tokenizer

    def media(self, target: TargetSection) -> HFMediaProcessor:
        """How the target reads images and videos. Raises UserError if it has no processor."""
        config = self._config(target, self.locate(target))
        return self.media_type(load_processor(target, self._of_the_text(target), config, self.options), config)

    def wrap(
        self,
        target: TargetSection,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: TargetFacts,
        device: str,
    ) -> HFVisionTarget:
        """The loaded model as a target."""
        return HFVisionTarget(model, tokenizer, facts, self.media(target), device)
