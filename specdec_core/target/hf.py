"""What every Hugging Face transformers decoder shares. A family's plugin overrides the accessors that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from specdec_core.capture.features import CapturePlan, Features
from specdec_core.data.batch import PADDING_DOCUMENT, Batch, concatenated
from specdec_core.errors import UserError
from specdec_core.nn.labels import LabelStats, label_loss
from specdec_core.nn.linear import pack_linear, replace_linear
from specdec_core.target import attention
from specdec_core.target.base import DecodeSession, Target, TargetFacts, Teacher
from specdec_core.target.capturing import record_inputs
from specdec_core.target.session import HFDecodeSession
from specdec_core.target.streaming import stream_argmax, stream_teacher

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROWS_TO_VERIFY = 5
"""What packed weights are laid out for; from 1 to some 16 rows the layout hardly matters."""


class HFTarget(Target):
    """A loaded transformers model with a language-model head, frozen and in evaluation mode."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        facts: TargetFacts,
        device: str = "cpu",
        pack_weights: bool = True,
    ) -> None:
        """`pack_weights`: for decoding in float32 on a CPU, hold a second copy of the weights in a faster layout."""
        from transformers import GenerationConfig

        self.model = model.requires_grad_(False).eval().to(device)
        replace_linear(self.model)
        self.knows_layouts = attention.install(self.model)
        self._to_pack = pack_weights
        self.tokenizer = tokenizer
        self.facts = facts
        self.device = device
        self._own_generation_config = model.generation_config
        # The model's own defaults (repetition penalties and the like) would bend its greedy output.
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(facts.stop_token_ids, default=0)
        model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=list(facts.stop_token_ids) or None, pad_token_id=pad
        )

    # Accessors that a family may override.

    def decoder(self) -> nn.Module:
        """The module that runs the layers and the final norm: what lies between the inputs and the head."""
        decoder: nn.Module = self.model.get_decoder()
        return decoder

    def layers(self) -> Sequence[nn.Module]:
        """The decoder layers in order."""
        layers: Sequence[nn.Module] = self.decoder().layers  # type: ignore[assignment]
        return layers

    def norm(self) -> nn.Module:
        """The norm after the last layer."""
        norm: nn.Module = self.decoder().norm  # type: ignore[assignment]
        return norm

    def embedding(self) -> nn.Module:
        """The token embedding."""
        embedding: nn.Module = self.model.get_input_embeddings()
        return embedding

    def head(self) -> nn.Linear:
        """The linear map from post-norm states to logits."""
        head: nn.Linear = self.model.get_output_embeddings()
        return head

    def finish_logits(self, logits: Tensor) -> Tensor:
        """What the model does elementwise to its head's output; default: soft-capping where the config asks for it."""
        cap = getattr(self.text_config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def sliding_layers(self) -> list[bool]:
        """For each layer, whether its attention has a sliding window."""
        count = self.facts.num_layers
        types = getattr(self.text_config, "layer_types", None)
        if types is None:
            return [getattr(self.text_config, "sliding_window", None) is not None] * count
        return ["sliding" in kind for kind in types[:count]]

    def model_inputs(self, batch: Batch) -> dict[str, Any]:
        """The decoder's keyword arguments for a batch, documents apart.

        Transformers keeps documents apart where positions restart and no mask is given; padding restarts them too.
        """
        padding = batch.document_ids == PADDING_DOCUMENT
        positions = torch.where(padding, torch.cumsum(padding, dim=-1) - 1, batch.positions)
        return {"input_ids": batch.ids, "position_ids": positions, **batch.extras}

    def continuation_inputs(self, ids: Tensor, start: int, depths: Tensor | None = None) -> dict[str, Any]:
        """The decoder's keyword arguments for `ids` [n] that follow cached tokens, the next position being `start`.

        `depths` [n] from 0 place the tokens of a tree; None is a chain.
        """
        positions = start + (torch.arange(ids.shape[0], device=ids.device) if depths is None else depths)
        return {"input_ids": ids[None], "position_ids": positions[None]}

    def prompt_inputs(
        self, prompts: Sequence[Sequence[int]], extras: Sequence[Mapping[str, Tensor]] = ()
    ) -> dict[str, Any]:
        """The keyword arguments of the model's own `generate` for prompts of any length, padded on the left.

        `extras` are each prompt's further inputs; empty: there are none.
        """
        longest = max(map(len, prompts))
        pad: int = self.model.generation_config.pad_token_id
        missing = [longest - len(prompt) for prompt in prompts]
        ids = [[pad] * gap + list(prompt) for gap, prompt in zip(missing, prompts, strict=True)]
        mask = [[0] * gap + [1] * len(prompt) for gap, prompt in zip(missing, prompts, strict=True)]
        return {
            "input_ids": torch.tensor(ids, device=self.device),
            "attention_mask": torch.tensor(mask, device=self.device),
            **{name: tensor.to(self.device) for name, tensor in concatenated(extras).items()},
        }

    @property
    def text_config(self) -> Any:
        """The config of the language model."""
        return self.model.config.get_text_config(decoder=True)

    # The contract.

    def embed(self, ids: Tensor) -> Tensor:
        """[..., H] input embeddings of token ids, as the first decoder layer reads them."""
        embeds: Tensor = self.embedding()(ids)
        return embeds

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V] from the post-norm hidden state [..., H]."""
        return self.finish_logits(self.head()(hidden))

    @torch.no_grad()
    def teacher(self, hidden: Tensor, rows: Tensor | None = None) -> Teacher:
        """The distribution at post-norm states [N, H]; see `stream_teacher`."""
        head = self.head()
        return stream_teacher(hidden, head.weight, head.bias, self.finish_logits, rows)

    def label_loss(self, hidden: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, LabelStats]:
        """Sum over rows of weight * cross-entropy; see `specdec_core.nn.labels`."""
        head = self.head()
        return label_loss(hidden, head.weight, labels, weights, bias=head.bias, finish=self.finish_logits)

    def embed_rows(self, ids: Tensor | None = None) -> Tensor:
        """A copy of rows of the embedding matrix, [n, H]; all rows if `ids` is None."""
        return _rows(self.embedding().weight, ids)  # type: ignore[arg-type]

    def head_rows(self, ids: Tensor | None = None) -> Tensor:
        """A copy of rows of the head's matrix, [n, H]; all rows if `ids` is None."""
        return _rows(self.head().weight, ids)

    def layer_state(self, index: int) -> dict[str, Tensor]:
        """A copy of decoder layer `index`'s weights; index L gives the final norm as `weight`."""
        layers = self.layers()
        if not 0 <= index <= len(layers):
            raise UserError(f"the target has decoder layers 0 to {len(layers) - 1}, not {index}")
        module = self.norm() if index == len(layers) else layers[index]
        state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        for name, part in module.named_modules():
            weight = part._parameters.get("weight")
            if weight is not None and weight.ndim == 1:
                state[f"{name}.weight" if name else "weight"] = norm_scale(part, weight)
        return state

    def capture(self, batch: Batch, plan: CapturePlan) -> Features:
        """Run the target over a batch, documents apart, and return what `plan` names."""
        with attention.layout(attention.Documents.of(batch.document_ids)):
            return self.run(self.model_inputs(batch), plan, use_cache=False)[1]

    def decode(self, plan: CapturePlan, capacity: int) -> DecodeSession:
        """A new session with room for `capacity` tokens, whose features follow `plan`."""
        if self._to_pack:
            pack_linear(self.model, rows=ROWS_TO_VERIFY)
            self._to_pack = False
        return HFDecodeSession(self, plan, capacity)

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, extras: Sequence[Mapping[str, Tensor]] = ()
    ) -> list[list[int]]:
        """Greedy continuations of a batch of prompts, each with its stop token if it came to one."""
        longest = max(map(len, prompts), default=0)
        if not longest:
            return [[] for _ in prompts]
        output = self.model.generate(**self.prompt_inputs(prompts, extras), max_new_tokens=max_new_tokens)
        return [self._until_stop(row) for row in output[:, longest:].tolist()]

    def save(self, directory: Path) -> None:
        """Write what `from_pretrained` reads: config, weights in their own type, tokenizer; read back and compared."""
        self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        if self._own_generation_config is not None:
            # Not through the model: transformers refuses to save some generation configs that it loads.
            self._own_generation_config.to_json_file(directory / "generation_config.json")
        found = type(self.model).from_pretrained(directory, dtype="auto").state_dict()
        for name, tensor in self.model.state_dict().items():
            if name not in found or found[name].dtype != tensor.dtype or not torch.equal(found[name], tensor.cpu()):
                raise RuntimeError(f"{directory}: {name} does not read back as it was written")

    def run(self, inputs: dict[str, Any], plan: CapturePlan, **kwargs: Any) -> tuple[Tensor, Features]:
        """One forward of the decoder. Returns the post-norm states and the features of all slots.

        A forward without a cache ends at the highest layer that is read; then the first value is empty.
        """
        layers = self.layers()
        count = len(layers)
        if unknown := [layer for layer in plan.layers if not 0 <= layer <= count]:
            raise UserError(f"layer {unknown[0]} cannot be captured: the target has layer ids 0 to {count}")
        wanted = sorted({*plan.layers, *([0] if plan.embeds else [])})
        cached = kwargs.get("past_key_values") is not None
        stop_early = not (cached or plan.last_hidden or plan.argmax)
        modules = {layer: self.norm() if layer == count else layers[layer] for layer in wanted}
        if stop_early and not modules:
            return self.head().weight.new_empty(0), Features()
        last_hidden = self.head().weight.new_empty(0)
        with record_inputs(modules, stop_early) as states:
            last_hidden = self.decoder()(**inputs, **kwargs).last_hidden_state
        return last_hidden, Features(
            hidden={layer: states[layer] for layer in sorted(plan.layers)},
            last_hidden=last_hidden if plan.last_hidden else None,
            embeds=states[0] if plan.embeds else None,
            argmax=self._argmax(last_hidden) if plan.argmax else None,
        )

    @torch.no_grad()
    def _argmax(self, hidden: Tensor) -> Tensor:
        """[...] int64 from post-norm states [..., H]."""
        head = self.head()
        flat = stream_argmax(hidden.flatten(0, -2), head.weight, head.bias, self.finish_logits)
        return flat.view(hidden.shape[:-1])

    def _until_stop(self, tokens: list[int]) -> list[int]:
        stops = set(self.facts.stop_token_ids)
        end = next((i + 1 for i, token in enumerate(tokens) if token in stops), len(tokens))
        return tokens[:end]


def _rows(weight: Tensor, ids: Tensor | None) -> Tensor:
    return weight.detach().clone() if ids is None else weight.detach()[ids]


@torch.no_grad()
def norm_scale(norm: nn.Module, weight: Tensor) -> Tensor:
    """What a norm with the parameter `weight` [H] multiplies the normalised state by: `weight` or `1 + weight`.

    Found by running the norm over a state of alternating ±1, which RMS and layer norms leave as it is.
    """
    state = torch.ones_like(weight)
    state[1::2] = -1
    scale = (norm(state) - norm(-state)) / (2 * state)
    plain, shifted = weight.detach().clone(), weight.detach().float() + 1
    distances = [(scale - candidate).float().abs().sum() for candidate in (plain, shifted)]
    return plain if distances[0] <= distances[1] else shifted
