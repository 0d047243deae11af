"""What a backbone promises before any forward: facts, tokenizer, weights that stay as they are, refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from specdec_core.config.run import TargetSection
from specdec_core.errors import UserError
from specdec_core.testing.compare import assert_all_same, assert_same
from specdec_core.testing.family import Family, everything
from specdec_core.testing.plugin import PluginContract
from specdec_core.testing.promises import promise

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
PROBE = "\N{SNOWMAN}"


class FactsContract(PluginContract):
    """Of a target that has been read, or loaded, and not yet run."""

    kind = "backbone"

    @promise("facts")
    def test_facts_are_read_without_weights(self, family: Family, tmp_path: Path) -> None:
        """A run is checked before gigabytes are loaded."""
        copy = Path(shutil.copytree(family.section.path, tmp_path / "copy"))
        for file in copy.iterdir():
            if file.suffix in WEIGHTS:
                file.unlink()
        found = family.backbone.facts(family.section.model_copy(update={"path": str(copy)}))
        expected = family.target.facts
        assert replace(found, name_or_path="") == replace(expected, name_or_path=""), (
            f"without weights the facts are {found}, of the loaded target {expected}"
        )
        assert expected.name_or_path == family.section.path, f"name_or_path is {expected.name_or_path!r}"

    @promise("facts")
    def test_facts_are_those_of_the_model(self, family: Family) -> None:
        """Sizes against the model's own states and the copies of its weights."""
        facts, values = family.target.facts, family.reference(family.ids(4, 1))
        assert values.features.embeds is not None
        found = (facts.hidden_size, facts.vocab_size, facts.num_layers, facts.dtype)
        expected = (
            values.features.embeds.shape[-1],
            values.logits.shape[-1],
            len(values.features.hidden) - 1,
            "float32",
        )
        assert found == expected, f"hidden size, vocabulary, layers and type are {found}, the model's are {expected}"
        state = family.target.layer_state(0)
        queries, keys = (n * facts.head_dim for n in (facts.num_attention_heads, facts.num_key_value_heads))
        for name, shape in (
            ("self_attn.q_proj.weight", [queries, facts.hidden_size]),
            ("self_attn.k_proj.weight", [keys, facts.hidden_size]),
            ("mlp.down_proj.weight", [facts.hidden_size, facts.intermediate_size]),
        ):
            if name in state:
                assert list(state[name].shape) == shape, (
                    f"{name} has shape {list(state[name].shape)}, the facts say {shape}"
                )

        if "self_attn.q_proj.weight" in state:
            biased = "self_attn.q_proj.bias" in state
            assert facts.attention_bias == biased, f"attention_bias is {facts.attention_bias}, the layer has {[*state]}"

    @promise("facts")
    def test_the_target_is_loaded_in_the_type_asked_for(self, family: Family) -> None:
        """`target.dtype`."""
        section = family.section.model_copy(update={"dtype": "bfloat16"})
        target = family.backbone.load(section, "cpu")
        found = (target.facts.dtype, target.embed(torch.tensor([3])).dtype, target.head_rows(torch.tensor([3])).dtype)
        assert found == ("bfloat16", torch.bfloat16, torch.bfloat16), f"asked for bfloat16, the target has {found}"

    @promise("tokenizer")
    def test_the_tokenizer_fits_the_model(self, family: Family) -> None:
        """Its ids have rows in the embedding, and it reads back what it wrote."""
        text = "The answer is 42."
        for tokenizer in (family.backbone.tokenizer(family.section), family.target.tokenizer):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert max(ids) < family.target.facts.vocab_size, f"token {max(ids)} lies beyond the vocabulary"
            assert tokenizer.decode(ids) == text, f"{text!r} reads back as {tokenizer.decode(ids)!r}"

    @promise("tokenizer")
    def test_what_ends_an_answer_is_a_stop_token(self, family: Family) -> None:
        """The configs' `eos_token_id`, the tokenizer's own, and the special token that the chat template writes after
        an answer."""
        facts, tokenizer = family.target.facts, family.target.tokenizer
        expected = {tokenizer.eos_token_id} - {None}
        for file in ("config.json", "generation_config.json"):
            path = Path(family.section.path) / file
            named = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
            expected |= {named} if isinstance(named, int) else {*(named or ())}
        if tokenizer.chat_template:
            turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
            after = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(PROBE)[2]
            ids = tokenizer(after.lstrip(), add_special_tokens=False)["input_ids"]
            expected |= {*ids[:1]} & {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        missing = sorted(expected - {*facts.stop_token_ids})
        assert not missing, f"token {missing} ends answers and is not among stop_token_ids {facts.stop_token_ids}"

    @promise("frozen-target")
    def test_nothing_of_the_target_can_be_changed(self, family: Family) -> None:
        """Every copy of weights that it hands out is overwritten; what it computes stays the same."""
        target, ids = family.target, torch.tensor([[5, 9, 4]])
        batch, plan = family.batch([[ids[0].tolist()]]), everything(target)
        before = target.capture(batch, plan)
        rows = torch.tensor([5, 9])
        copies = [
            target.embed(ids),
            target.embed_rows(),
            target.embed_rows(rows),
            target.head_rows(),
            target.head_rows(rows),
        ]
        for index in range(target.facts.num_layers + 1):
            copies += target.layer_state(index).values()
        for copy in copies:
            assert not copy.requires_grad, "a copy of weights takes part in autograd"
            copy.zero_()
        for found, expected in zip(target.capture(batch, plan).tensors(), before.tensors(), strict=True):
            assert_same(found, expected, "after copies of weights were overwritten, what is captured")

    @promise("frozen-target")
    def test_gradients_pass_through_the_head_and_stop_there(self, family: Family) -> None:
        """A draft that uses the target's head learns through it."""
        target = family.target
        features = target.capture(family.batch([[family.ids(4, 1)]]), everything(target))
        strange = [tensor for tensor in features.tensors() if tensor.requires_grad]
        assert not strange, "captured features take part in autograd"
        assert not target.embed(torch.tensor([3])).requires_grad, "the embedding takes part in autograd"
        assert features.last_hidden is not None
        hidden = features.last_hidden.clone().requires_grad_()
        target.logits(hidden)[..., 7].sum().backward()  # type: ignore[no-untyped-call]
        assert hidden.grad is not None
        assert bool(hidden.grad.any()), "no gradient passes through the target's head"

    @promise("embeddings")
    def test_rows_of_embedding_and_head_are_those_asked_for(self, family: Family) -> None:
        """In the order asked for; all of them without ids."""
        target, ids = family.target, torch.tensor([9, 4, 9])
        for name, rows in (("embed_rows", target.embed_rows), ("head_rows", target.head_rows)):
            whole = rows()
            shape = [target.facts.vocab_size, target.facts.hidden_size]
            assert list(whole.shape) == shape, f"{name}() has shape {list(whole.shape)}, expected {shape}"
            assert_same(rows(ids), whole[ids], f"{name} of ids [9, 4, 9]")

    @promise("refusals")
    def test_what_cannot_be_used_is_refused_in_one_sentence(self, family: Family, tmp_path: Path) -> None:
        """A target that is not there, a layer that it lacks."""
        target, count = family.target, family.target.facts.num_layers
        nowhere = TargetSection(path=str(tmp_path / "nowhere"))
        asked: tuple[tuple[str, Callable[[], object]], ...] = (
            ("facts of no target", lambda: family.backbone.facts(nowhere)),
            ("loading no target", lambda: family.backbone.load(nowhere, "cpu")),
            (f"layer_state({count + 1})", lambda: target.layer_state(count + 1)),
        )
        for what, ask in asked:
            with pytest.raises(UserError) as caught:
                ask()
            assert "\n" not in str(caught.value), f"{what} is refused in more than a sentence: {caught.value}"

    @promise("facts")
    def test_loading_twice_gives_the_same_target(self, family: Family) -> None:
        """And the second does not disturb the first."""
        again = family.backbone.load(family.section, "cpu")
        for index in range(family.target.facts.num_layers + 1):
            found, expected = (each.layer_state(index) for each in (again, family.target))
            assert_all_same(found, expected, f"loaded twice, layer {index}'s")
