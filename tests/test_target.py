"""A target against the plain model: teachers, generation and copies of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from target_checks import LONG, Load, Plain, random_ids, reference
from tiny_models import FAMILIES, save_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from specdec_causal_lm.backbone import CausalLMBackbone
from specdec_causal_lm.config import CausalLMConfig
from specdec_core.config.run import TargetSection
from specdec_core.errors import UserError
from specdec_core.target.streaming import stream_argmax, stream_teacher


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operator's output had."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor):
            self.elements = max(self.elements, output.numel())
        return output


class TestTeacher:
    @pytest.mark.parametrize("family", ["llama", "gemma2", "phi", "cohere", "granite"])
    def test_equals_the_plain_softmax(self, load: Load, plain: Plain, family: str) -> None:
        document = random_ids(LONG)
        expected, logits = reference(plain(family), document)
        target = load(family)
        assert expected.last_hidden is not None
        hidden = expected.last_hidden[0]
        rows = torch.tensor([0, 3, 17, 200, 511])
        for asked in (None, rows):
            teacher = target.teacher(hidden, asked)
            columns = logits if asked is None else logits[:, asked]
            torch.testing.assert_close(teacher.logits, columns, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(teacher.log_z, logits.logsumexp(-1), rtol=1e-5, atol=1e-5)
            assert torch.equal(teacher.argmax, logits.argmax(-1))
        torch.testing.assert_close(target.logits(hidden), logits, rtol=1e-4, atol=1e-4)

    @settings(deadline=None, max_examples=60)
    @given(
        count=st.integers(0, 9),
        rows=st.one_of(st.none(), st.lists(st.integers(0, 22), max_size=30)),
        rows_per_block=st.integers(1, 10),
        vocab_per_block=st.integers(1, 30),
        biased=st.booleans(),
    )
    def test_blocks_make_no_difference(
        self, count: int, rows: list[int] | None, rows_per_block: int, vocab_per_block: int, biased: bool
    ) -> None:
        generator = torch.Generator().manual_seed(count)
        hidden, weight = torch.randn(count, 4, generator=generator), torch.randn(23, 4, generator=generator)
        bias = torch.randn(23, generator=generator) if biased else None
        logits = torch.tanh(torch.nn.functional.linear(3 * hidden, weight, bias))
        asked = None if rows is None else torch.tensor(rows, dtype=torch.int64)
        teacher = stream_teacher(3 * hidden, weight, bias, torch.tanh, asked, rows_per_block, vocab_per_block)
        torch.testing.assert_close(teacher.logits, logits if asked is None else logits[:, asked])
        torch.testing.assert_close(teacher.log_z, logits.logsumexp(-1))
        assert torch.equal(teacher.argmax, logits.argmax(-1))
        streamed = stream_argmax(3 * hidden, weight, bias, torch.tanh, rows_per_block, vocab_per_block)
        assert torch.equal(streamed, logits.argmax(-1))

    def test_the_lowest_id_wins_a_tie(self) -> None:
        weight = torch.tensor([[0.0], [1.0], [1.0], [0.5], [1.0]])
        for block in (1, 2, 5):
            assert stream_teacher(torch.ones(1, 1), weight, vocab_per_block=block).argmax.tolist() == [1]
            assert stream_argmax(torch.ones(1, 1), weight, vocab_per_block=block).tolist() == [1]

    def test_large_logits_do_not_overflow(self) -> None:
        weight = torch.tensor([[1000.0], [-1000.0], [999.0]])
        teacher = stream_teacher(torch.ones(1, 1), weight, vocab_per_block=1)
        torch.testing.assert_close(teacher.log_z, (weight.t()).logsumexp(-1))

    def test_no_tensor_over_the_vocabulary_is_held(self) -> None:
        hidden, weight = torch.randn(50, 8), torch.randn(1000, 8)
        with LargestTensor() as seen:
            stream_teacher(hidden, weight, rows=torch.tensor([5, 900]), rows_per_block=10, vocab_per_block=100)
        assert seen.elements <= 10 * 100

    def test_softmax_is_float32_under_bfloat16(self) -> None:
        hidden, weight = torch.randn(5, 8).bfloat16(), torch.randn(300, 8).bfloat16()
        teacher = stream_teacher(hidden, weight, vocab_per_block=64)
        expected = torch.nn.functional.linear(hidden, weight).float()
        assert teacher.logits.dtype == teacher.log_z.dtype == torch.float32
        torch.testing.assert_close(teacher.log_z, expected.logsumexp(-1), rtol=1e-2, atol=1e-2)


class TestGenerate:
    @pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
    def test_a_batch_equals_each_prompt_alone(self, load: Load, plain: Plain, family: str) -> None:
        prompts = [random_ids(length, length) for length in (2, 5, 9)]
        target = load(family)
        found = target.generate(prompts, max_new_tokens=12)
        for prompt, continuation in zip(prompts, found, strict=True):
            own = plain(family).generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=2)
            assert continuation == own[0, len(prompt) :].tolist()

    def test_the_stop_token_ends_a_continuation_and_is_part_of_it(self, load: Load, tmp_path: Path) -> None:
        prompts = [random_ids(6, 1), random_ids(3, 2)]
        unstopped = load("llama").generate(prompts, max_new_tokens=8)
        stop = unstopped[0][3]
        target = self.with_generation_config(tmp_path, eos_token_id=stop)
        for found, whole in zip(target.generate(prompts, max_new_tokens=8), unstopped, strict=True):
            assert found == whole[: whole.index(stop) + 1 if stop in whole else None]

    def test_no_prompts_no_continuations(self, load: Load) -> None:
        assert load("llama").generate([], max_new_tokens=3) == []

    @staticmethod
    def with_generation_config(directory: Path, **values: Any) -> Any:
        save_model("llama", directory)
        transformers.GenerationConfig(**values).save_pretrained(directory)
        return CausalLMBackbone(CausalLMConfig()).load(TargetSection(path=str(directory)), "cpu")

    def test_penalties_of_the_models_own_generation_config_are_left_out(self, load: Load, tmp_path: Path) -> None:
        target = self.with_generation_config(tmp_path, repetition_penalty=5.0, do_sample=True, eos_token_id=[2, 9])
        assert target.facts.stop_token_ids == (2, 9)
        prompt = [random_ids(6, 1)]
        assert target.generate(prompt, 8) == load("llama").generate(prompt, 8)


class TestWeights:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_norms_weight_is_what_multiplies(self, load: Load, family: str) -> None:
        target = load(family)
        count = target.facts.num_layers
        weight = target.layer_state(count)["weight"]
        state = torch.randn(64)
        centred = state - state.mean() if family in {"phi", "cohere"} else state
        expected = centred / centred.square().mean().sqrt() * weight
        bias = getattr(target.norm(), "bias", None)
        found = target.norm()(state[None])[0]
        torch.testing.assert_close(found, expected if bias is None else expected + bias, rtol=1e-4, atol=1e-4)

    def test_layers_are_copies_under_the_usual_names(self, load: Load) -> None:
        target = load("llama")
        state = target.layer_state(1)
        state["self_attn.q_proj.weight"].zero_()
        state["input_layernorm.weight"].zero_()
        again = target.layer_state(1)
        assert bool(again["self_attn.q_proj.weight"].any())
        assert bool(again["input_layernorm.weight"].any())
        with pytest.raises(UserError, match="decoder layers 0 to 7, not 9"):
            target.layer_state(9)

    def test_fused_projections_are_taken_apart(self, load: Load) -> None:
        target = load("phi3")
        state = target.layer_state(0)
        fused = dict(target.layers()[0].named_parameters())
        parts = [state[f"self_attn.{name}_proj.weight"] for name in "qkv"]
        assert [tuple(part.shape) for part in parts] == [(64, 64), (32, 64), (32, 64)]
        assert torch.equal(torch.cat(parts), fused["self_attn.qkv_proj.weight"])
        halves = [state["mlp.gate_proj.weight"], state["mlp.up_proj.weight"]]
        assert torch.equal(torch.cat(halves), fused["mlp.gate_up_proj.weight"])

    @pytest.mark.parametrize("family", ["llama", "qwen3"])
    def test_rows_are_copies(self, load: Load, plain: Plain, family: str) -> None:
        target, ids = load(family), torch.tensor([4, 9, 4])
        for rows, module in (
            (target.embed_rows, plain(family).get_input_embeddings()),
            (target.head_rows, plain(family).get_output_embeddings()),
        ):
            assert torch.equal(rows(ids), module.weight[ids])
            copy = rows()
            assert torch.equal(copy, module.weight)
            copy.zero_()
            assert torch.equal(rows(), module.weight)

    @pytest.mark.parametrize("family", ["llama", "gemma2"])
    def test_embed_gives_what_the_first_layer_reads(self, load: Load, plain: Plain, family: str) -> None:
        document = random_ids(5)
        expected, _ = reference(plain(family), document)
        torch.testing.assert_close(load(family).embed(torch.tensor([document])), expected.embeds)
