"""A model family on the bench: a tiny target, loaded by its backbone, and the model's own values to compare with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specdec_core.capture.features import CapturePlan, Features
from specdec_core.config.run import TargetSection
from specdec_core.data.batch import Batch
from specdec_core.target.base import Backbone, Target
from specdec_core.testing.batches import random_ids
from specdec_core.testing.compare import assert_close


@dataclass(frozen=True)
class Values:
    """What a model computes for one document of n tokens: every feature, [1, n, ...], and its logits [n, V]."""

    features: Features
    logits: Tensor


Reference = Callable[[Sequence[int]], Values]


def save_random_model(config: Any, directory: Path) -> None:
    """Save a seeded random model of a transformers config; its norms and biases are random too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _auto_model(config).from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.2 * torch.randn_like(parameter)
        model.save_pretrained(directory)


def save_processor(directory: Path, config: Any, image_processor: Any, video_processor: Any = None) -> None:
    """Save the processor of a transformers config's family, with the tokenizer that lies in the directory."""
    from transformers import AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    from specdec_core.target.hf_media import without_videos

    kind, parts = PROCESSOR_MAPPING[type(config)], {"image_processor": image_processor}
    if video_processor is None:
        kind = without_videos(kind)
    else:
        parts["video_processor"] = video_processor
    kind(tokenizer=AutoTokenizer.from_pretrained(directory), **parts).save_pretrained(directory)


@cache
def own_model(directory: Path) -> Any:
    """Transformers' own model of a directory, in float32 with eager attention."""
    from transformers import AutoConfig

    auto_model = _auto_model(AutoConfig.from_pretrained(directory))
    model = auto_model.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32)
    return model.eval().requires_grad_(False)


def own_values(model: Any, ids: Sequence[int], **inputs: Any) -> Values:
    """What transformers' model computes for one document, which it sees alone; `inputs` are its further ones.

    Layer states are read before each layer: a model may add to them between two layers, and its `hidden_states` be
    without what it adds. That after the last layer is the final norm's input, where the norm is called `norm`.
    """
    decoder = model.get_decoder()
    states: list[Tensor] = []

    def read(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])

    def read_output(_: Any, args: tuple[Any, ...], output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_pre_hook(read, with_kwargs=True) for layer in decoder.layers]
    if hasattr(decoder, "norm"):
        handles.append(decoder.norm.register_forward_pre_hook(read, with_kwargs=True))
    else:
        handles.append(decoder.layers[-1].register_forward_hook(read_output))
    output = model(torch.tensor([list(ids)]), output_hidden_states=True, **inputs)
    for handle in handles:
        handle.remove()
    last = output.hidden_states[-1]
    return Values(Features(dict(enumerate(states)), last, states[0], output.logits.argmax(-1)), output.logits[0])


def _auto_model(config: Any) -> Any:
    """The class of transformers that makes a model of a config with a language-model head."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

    sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if sees else AutoModelForCausalLM


def everything(target: Target) -> CapturePlan:
    """A plan that names all that can be captured."""
    return CapturePlan(tuple(range(target.facts.num_layers + 1)), last_hidden=True, embeds=True, argmax=True)


def planned(features: Features, plan: CapturePlan) -> Features:
    """Of features that hold everything, what a plan names."""
    return Features(
        {layer: features.hidden[layer] for layer in plan.layers},
        features.last_hidden if plan.last_hidden else None,
        features.embeds if plan.embeds else None,
        features.argmax if plan.argmax else None,
    )


def assert_features(found: Features, expected: Features, what: str) -> None:
    """Every tensor of `expected`, up to rounding."""
    missing = expected.hidden.keys() ^ found.hidden.keys()
    assert not missing, f"{what}, layers {sorted(missing)} are not in both"
    pairs = {f"layer {layer}": (found.hidden[layer], value) for layer, value in expected.hidden.items()}
    for name in ("last_hidden", "embeds", "argmax"):
        if getattr(expected, name) is not None:
            assert getattr(found, name) is not None, f"{what}, {name} is not there"
            pairs[name] = (getattr(found, name), getattr(expected, name))
    for name, (ours, theirs) in pairs.items():
        assert_close(ours, theirs, f"{what}, {name}", 0.0 if name == "argmax" else 1e-4)


@dataclass(frozen=True)
class Family:
    """A backbone, where its tiny target lies, the target loaded, and what the model computes by itself."""

    backbone: Backbone
    section: TargetSection
    target: Target
    reference: Reference
    batch: Callable[[Sequence[Sequence[Sequence[int]]]], Batch]

    def ids(self, count: int, seed: int) -> list[int]:
        """Random tokens."""
        return random_ids(count, self.target.facts.vocab_size, seed)

    def extras(self, prompts: Sequence[Sequence[int]]) -> list[Mapping[str, Tensor]]:
        """Each prompt's further model inputs, as `Target.generate` takes them; empty where none has any."""
        return []

    def features(self, ids: Sequence[int], plan: CapturePlan) -> Features:
        """What the plan names of the reference."""
        return planned(self.reference(ids).features, plan)
