"""Runs of an algorithm that trains its target: checkpoints, resume, export, decoding, and what is refused."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_runs import CrashAfter, assert_same_run, command, lines, steps, toy_config, train
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from specdec_causal_lm.backbone import CausalLMBackbone
from specdec_causal_lm.config import CausalLMConfig
from specdec_core.checkpoint import store
from specdec_core.checkpoint.open import open_run
from specdec_core.cli.main import app
from specdec_core.config.run import TargetSection
from specdec_core.config.show import to_toml
from specdec_core.errors import UserError
from specdec_core.registry.registry import Registry
from specdec_core.target.base import Backbone

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def make(tiny_target_dir: Path, conversations_file: Path, tmp_path: Path, toy: None) -> Make:
    """Configs of runs `tmp_path/NAME`: 12 steps, the target from the sixth on."""

    def config(name: str = "run", **sections: Any) -> dict[str, Any]:
        sections = {
            "algorithm": {"name": "joint", **sections.pop("algorithm", {})},
            "draft": {"vocab_size": None, **sections.pop("draft", {})},
            "train": {"output_dir": str(tmp_path / name), **sections.pop("train", {})},
            **sections,
        }
        return toy_config(tiny_target_dir, conversations_file, tmp_path / "run", **sections)

    return config


def target_weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def generated(directory: Path, prompt: str) -> list[int]:
    """What transformers alone makes of a model directory."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    return output[0, inputs["input_ids"].shape[1] :].tolist()


def test_a_joint_run_learns_and_leaves_its_target_behind(make: Make, tiny_target_dir: Path) -> None:
    run, screen = train(make(train={"keep_last": 9, "accumulation": 4}))
    metrics = lines(run)
    assert metrics[-1]["loss"] < 0.9 * metrics[0]["loss"]
    # While only the head learns, the target's own loss moves with the data alone; then it falls.
    assert metrics[-1]["target/loss"] < 0.9 * metrics[5]["target/loss"]
    assert f"the trained target is in {run / 'target'}" in screen

    base, trained = target_weights(tiny_target_dir), target_weights(run / "target")
    assert trained.keys() == base.keys()
    assert all(not torch.equal(trained[name], tensor) for name, tensor in base.items())
    saved = [store.load(store.checkpoint_path(run, step)).target for step in (4, 8, 12)]
    assert all(torch.equal(saved[0][name], tensor) for name, tensor in base.items())
    assert all(not torch.equal(saved[1][name], tensor) for name, tensor in base.items())
    assert all(torch.equal(saved[2][name], tensor) for name, tensor in trained.items())
    assert json.loads((run / "draft" / "specdec.json").read_text())["trained_target"] is True

    prompt = AutoTokenizer.from_pretrained(run / "target").apply_chat_template(
        [{"role": "user", "content": "the red river"}], tokenize=False, add_generation_prompt=True
    )
    own, others = generated(run / "target", prompt), generated(tiny_target_dir, prompt)
    assert own
    assert own != others
    opened = open_run(run, Registry.discover())
    assert opened.target.generate([opened.target.tokenizer(prompt)["input_ids"]], 12)[0] == own


@pytest.mark.parametrize("family", ["qwen3", "cohere"])
def test_the_saved_target_is_a_model_like_its_base(
    make: Make, family_dir: Callable[[str], Path], family: str, tmp_path: Path
) -> None:
    """Tied weights, bfloat16, and a generation config that transformers itself would refuse to save."""
    base = tmp_path / "base"
    shutil.copytree(family_dir(family), base)
    generation = {"do_sample": False, "temperature": 0.5, "eos_token_id": 2, "repetition_penalty": 1.5}
    (base / "generation_config.json").write_text(json.dumps(generation))
    target, rate = {"path": str(base), "dtype": "bfloat16"}, {"target_lr": 1e-2}
    run, _ = train(make(target=target, algorithm=rate, train={"dtype": "bfloat16", "max_steps": 4}))
    config = json.loads((run / "target" / "config.json").read_text())
    assert {k: v for k, v in config.items() if k != "dtype"} == {
        k: v for k, v in json.loads((base / "config.json").read_text()).items() if k != "dtype"
    }
    assert config["dtype"] == "bfloat16"
    assert generation.items() <= json.loads((run / "target" / "generation_config.json").read_text()).items()
    trained, masters = target_weights(run / "target"), store.load(store.checkpoint_path(run, 4)).target
    assert trained.keys() == masters.keys() == target_weights(base).keys()
    for name, tensor in trained.items():
        assert (tensor.dtype, masters[name].dtype) == (torch.bfloat16, torch.float32)
        assert torch.equal(tensor, masters[name].bfloat16())
    opened = open_run(run, Registry.discover())
    module = opened.backbone.module(opened.target)
    assert all(torch.equal(trained[name], parameter) for name, parameter in module.named_parameters())
    assert module.lm_head.weight is module.model.embed_tokens.weight
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize(
    ("sections", "crash"),
    [
        ({}, 3),
        ({}, 10),
        ({"train": {"dtype": "bfloat16", "keep_last": 1}, "target": {"dtype": "bfloat16"}}, 9),
        ({"draft": {"init": "fitted", "fit_tokens": 300}, "train": {"save_every": 1}}, 7),
    ],
)
def test_a_run_that_was_ended_goes_on_bit_for_bit(make: Make, sections: dict[str, Any], crash: int) -> None:
    def config(name: str) -> dict[str, Any]:
        return make(name, **{section: dict(keys) for section, keys in sections.items()})

    whole, _ = train(config("whole"))
    with pytest.raises(KeyboardInterrupt):
        train(config("run"), observer=CrashAfter(crash))
    run, _ = train(config("run"), resume=True)
    same_joint_run(run, whole)
    assert steps(run) == steps(whole)


def same_joint_run(run: Path, whole: Path) -> None:
    assert_same_run(run, whole)
    assert (store.checkpoint_path(run, steps(run)[-1]) / "target.safetensors").exists()
    for name in ("config.json", "model.safetensors"):
        assert (run / "target" / name).read_bytes() == (whole / "target" / name).read_bytes()


def test_a_run_killed_while_the_target_learns_ends_as_if_it_had_not_been(make: Make, toy_path: Path) -> None:
    """SIGKILL to the real command."""
    pace = {"save_every": 1, "max_steps": 10, "keep_last": 2}
    whole, _ = train(make("whole", train=dict(pace)))
    # The toy's pause is not part of what it learns.
    config = make(algorithm={"seconds": 0.1}, train=dict(pace))
    run = Path(config["train"]["output_dir"])
    killed = command(config, [toy_path])
    while killed.poll() is None and steps(run)[-1:] < [7]:
        time.sleep(0.005)
    killed.kill()
    _, screen = killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL, screen
    resumed = command(config, [toy_path], "--resume")
    _, screen = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, screen
    same_joint_run(run, whole)


def test_a_complete_run_without_its_target_exports_it(make: Make) -> None:
    run, _ = train(make(train={"max_steps": 2}))
    before = target_weights(run / "target")
    shutil.rmtree(run / "target")
    train(make(train={"max_steps": 2}), resume=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in target_weights(run / "target").items())


def test_a_checkpoint_is_exported_with_its_target(make: Make, tmp_path: Path) -> None:
    run, _ = train(make(train={"keep_last": 9}))
    done = CliRunner().invoke(app, ["export", str(run), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        f"{tmp_path / 'out'}: the draft of step 12",
        f"{tmp_path / 'out' / 'target'}: the target that was trained with it",
    ]
    for name in ("draft", "target"):
        out = tmp_path / "out" / ("" if name == "draft" else name)
        for file in (run / name).iterdir():
            assert (out / file.name).read_bytes() == file.read_bytes(), file
    earlier = CliRunner().invoke(
        app, ["export", str(store.checkpoint_path(run, 4)), "--out", str(tmp_path / "out"), "--format", "hf"]
    )
    assert earlier.exit_code == 0, earlier.output
    saved = store.load(store.checkpoint_path(run, 4)).target
    assert all(torch.equal(saved[n], tensor) for n, tensor in target_weights(tmp_path / "out" / "target").items())


def test_eval_and_generate_decode_with_the_trained_target(
    make: Make, tiny_target_dir: Path, conversations_file: Path
) -> None:
    run, _ = train(make(train={"max_steps": 30, "epochs": 30}))
    options = ["--prompts", str(conversations_file), "--max-prompts", "3", "--max-new-tokens", "16"]
    done = CliRunner().invoke(app, ["eval", str(run), *options, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["conditions"]["target"], found["conditions"]["target_step"]) == (str(tiny_target_dir), 30)
    assert [m["outputs"] for m in found["methods"][1:]] == [{"identical": 3}]
    opened = open_run(run, Registry.discover())
    base = CausalLMBackbone(CausalLMConfig()).load(TargetSection(path=str(tiny_target_dir)), "cpu")
    alone = [result for result in found["results"] if result["method"] == "target alone"]
    prompts = {r["prompt"]: r["tokens"] for r in alone}
    assert any(
        tokens != base.generate([ids], 16)[0]
        for ids, tokens in zip(encoded(opened, conversations_file, list(prompts)), prompts.values(), strict=True)
    )
    shown = CliRunner().invoke(app, ["eval", str(run), *options])
    assert f"{tiny_target_dir} as trained by this run, step 30; chain" in "".join(shown.stdout.splitlines())
    answers = [
        CliRunner().invoke(app, ["generate", str(run), "the red river", "--max-new-tokens", "16", *more]).stdout
        for more in ([], ["--no-draft"])
    ]
    assert answers[0] == answers[1]


def encoded(opened: Any, file: Path, names: list[str]) -> list[list[int]]:
    from specdec_core.evaluate.config import JsonlPromptsConfig
    from specdec_core.evaluate.prompts import JsonlPrompts

    by_id = {prompt.id: prompt for prompt in JsonlPrompts(JsonlPromptsConfig(path=str(file)))}
    return [opened.encoder().encode(by_id[name].messages).ids[0].tolist() for name in names]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"cache": {"name": "memory"}},
            'error: cache: algorithm "joint" trains the target, and features kept from an earlier step would be of '
            "weights that are no more; leave [cache] out",
        ),
        (
            {"target": {"dtype": "float16"}},
            'error: target.dtype: algorithm "joint" trains the target, whose gradients float16 cannot hold; '
            'set it to "bfloat16" or "float32"',
        ),
    ],
)
def test_what_a_trained_target_rules_out_is_refused(
    make: Make, tmp_path: Path, sections: dict[str, Any], message: str
) -> None:
    (tmp_path / "run.toml").write_text(to_toml(make(**sections)))
    done = CliRunner().invoke(app, ["train", str(tmp_path / "run.toml")])
    assert (done.exit_code, done.stderr.splitlines()) == (2, [message])
    assert not (tmp_path / "run" / "config.toml").exists()


def test_a_backbone_that_cannot_have_its_targets_trained_says_so(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CausalLMBackbone, "module", Backbone.module)
    with pytest.raises(UserError, match="CausalLMBackbone cannot have its targets trained; choose an algorithm that"):
        train(make())


def test_a_target_that_does_not_fit_the_checkpoint_is_named(make: Make, family_dir: Callable[[str], Path]) -> None:
    run, _ = train(make(train={"max_steps": 1}))
    with pytest.raises(UserError) as caught:
        open_run(run, Registry.discover(), overrides=[f"target.path={family_dir('qwen3')}"])
    assert "which this target does not have" in str(caught.value)


def test_a_target_that_does_not_read_back_is_noticed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    save = LlamaForCausalLM.save_pretrained

    def careless(self: Any, *args: Any) -> None:
        save(self, *args)
        with torch.no_grad():
            self.model.norm.weight.add_(1e-3)

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", careless)
    with pytest.raises(RuntimeError, match=r"model\.norm\.weight does not read back as it was written"):
        train(make(train={"max_steps": 1}))
