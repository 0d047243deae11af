"""Medusa on a real tiny target: through the commands, and on a text learned by heart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_runs import lines, toy_config, train, weights
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from specdec_causal_lm.backbone import CausalLMBackbone
from specdec_causal_lm.config import CausalLMConfig
from specdec_core.capture.features import Features
from specdec_core.cli.main import app
from specdec_core.config.run import DraftSection, TargetSection, TrainSection
from specdec_core.data.batch import Batch
from specdec_core.decode.loop import Emission, decode
from specdec_core.engine.base import StepModule
from specdec_core.engine.config import TorchEngineConfig
from specdec_core.engine.torch_engine import TorchEngine
from specdec_core.errors import UserError
from specdec_core.target.base import Target
from specdec_medusa.algorithm import Medusa
from specdec_medusa.config import MedusaConfig

TREE = [[0], [1], [0, 0], [0, 1], [1, 0], [0, 0, 0]]


def config_of(target: Path, data: Path, output: Path, /, **sections: Any) -> dict[str, Any]:
    algorithm = {"name": "medusa", "heads": 3, **sections.pop("algorithm", {})}
    pack = {"name": "jsonl", "path": str(data), "limit": 4, "category": "chats"}
    measured = {"prompts": [pack], "max_new_tokens": 12, "num_draft_tokens": 3}
    train_section = {"max_steps": 2, "accumulation": 1, **sections.pop("train", {})}
    return toy_config(target, data, output, algorithm=algorithm, train=train_section, eval=measured, **sections)


@pytest.mark.parametrize("implementation", ["fast", "plain"])
@pytest.mark.parametrize(
    ("target", "draft", "loss"), [("bfloat16", "float32", "tokens"), ("float32", "bfloat16", "target")]
)
def test_target_and_draft_may_be_of_different_types(
    target: str,
    draft: str,
    loss: str,
    implementation: str,
    tiny_target_dir: Path,
    conversations_file: Path,
    tmp_path: Path,
) -> None:
    config = config_of(
        tiny_target_dir, conversations_file, tmp_path / "run",
        algorithm={"loss": loss, "implementation": implementation}, train={"dtype": draft},
    )  # fmt: skip
    config["target"]["dtype"] = target
    run, screen = train(config)
    assert len(lines(run)) == 2
    assert {"accuracy/3", "acceptance/1", "acceptance_length", "loss/2"} <= lines(run)[-1].keys()
    assert "accuracy 0." in screen
    assert all(tensor.isfinite().all() for tensor in weights(run).values())
    assert {"blocks.2.layers.0.bias", "lm_heads.2.weight", "d2t"} <= weights(run).keys()


def test_a_trained_run_drafts_chains_and_trees_through_the_commands(
    tiny_target_dir: Path, conversations_file: Path, tmp_path: Path
) -> None:
    run, _ = train(config_of(tiny_target_dir, conversations_file, tmp_path / "run"))

    def evaluated(*overrides: str) -> dict[str, Any]:
        done = CliRunner().invoke(app, ["eval", str(run), *overrides, "--json"])
        assert done.exit_code == 0, done.output
        found: dict[str, Any] = json.loads(done.stdout)
        assert all(method["outputs"] == {"identical": 4} for method in found["methods"][1:])
        return found

    assert evaluated()["conditions"]["drafting"] == "chain"
    assert evaluated(f"algorithm.tree={TREE}")["conditions"]["drafting"].startswith(
        "tree of up to 6 nodes (on average "
    )
    assert evaluated("algorithm.tree=9", "--temperature", "0")["conditions"]["drafting"].startswith("tree of up to 9")

    def generated(*options: str) -> Any:
        return CliRunner().invoke(app, ["generate", str(run), "A small apple?", *options])

    wide = generated("algorithm.tree=200", "-k", "9")
    assert wide.exit_code == 0, wide.output
    assert wide.stdout == generated("--no-draft").stdout
    assert "k = 9 (3 proposed at most), T = 0)" in wide.stderr
    assert "(3 proposed at most)" in CliRunner().invoke(app, ["eval", str(run), "--k", "9"]).stdout.replace("\n", " ")

    chain, alone = generated(), generated("--no-draft")
    assert chain.exit_code == 0, chain.output
    assert chain.stdout == alone.stdout
    assert "(chain, k = 3, T = 0)" in chain.stderr


def test_a_preset_that_a_runs_own_config_overrules_is_refused(
    tiny_target_dir: Path, conversations_file: Path, tmp_path: Path
) -> None:
    run, _ = train(config_of(tiny_target_dir, conversations_file, tmp_path / "run"))
    for command in (["config", "show", str(run / "config.toml")], ["eval", str(run)]):
        refused = CliRunner().invoke(app, [*command, "algorithm.preset=medusa-1"])
        assert refused.exit_code == 2
        assert (
            'algorithm.preset: "medusa-1" is overruled by the config, which gives algorithm.heads = 3, '
            in refused.stderr
        )
        assert 'algorithm.mask = "strict"' in refused.stderr


def test_generate_names_the_tree_that_the_run_was_configured_with(
    tiny_target_dir: Path, conversations_file: Path, tmp_path: Path
) -> None:
    run, _ = train(config_of(tiny_target_dir, conversations_file, tmp_path / "run", algorithm={"tree": TREE}))
    drafted = CliRunner().invoke(app, ["generate", str(run), "A small apple?"])
    alone = CliRunner().invoke(app, ["generate", str(run), "A small apple?", "--no-draft"])
    assert drafted.stdout == alone.stdout
    assert "(tree of up to 6 nodes (on average " in drafted.stderr
    assert "k = 3, T = 0)" in drafted.stderr


def test_an_exported_draft_starts_another_run(tiny_target_dir: Path, conversations_file: Path, tmp_path: Path) -> None:
    first, _ = train(config_of(tiny_target_dir, conversations_file, tmp_path / "first"))
    section = {"vocab_size": 64, "init_from": str(first / "draft")}
    still = {"max_steps": 1, "lr": 1e-9}
    second, _ = train(config_of(tiny_target_dir, conversations_file, tmp_path / "second", draft=section, train=still))
    anew, _ = train(config_of(tiny_target_dir, conversations_file, tmp_path / "third", train=still))

    def moved(run: Path) -> float:
        return max(
            float((tensor.float() - weights(first)[name].float()).abs().max()) for name, tensor in weights(run).items()
        )

    assert moved(second) < 1e-6
    assert moved(anew) > 1e-3


def test_a_fitted_start_is_refused(tiny_target_dir: Path, conversations_file: Path, tmp_path: Path) -> None:
    config = config_of(tiny_target_dir, conversations_file, tmp_path / "run", draft={"init": "fitted"})
    with pytest.raises(UserError, match=r'Medusa has no closed-form start; use draft.init = "target" or "random"'):
        train(config)


def test_a_target_that_learns_with_its_heads_is_a_model_of_its_own(
    tiny_target_dir: Path, conversations_file: Path, tmp_path: Path
) -> None:
    options = {"train_target": True, "target_lr": 3e-3, "heads_first": 0.4}
    pace = {"max_steps": 40, "epochs": 40, "accumulation": 4, "lr": 3e-3, "save_every": 16, "keep_last": 9}
    config = config_of(tiny_target_dir, conversations_file, tmp_path / "run", algorithm=options, train=pace)
    run, _ = train(config)
    told = lines(run)
    assert told[-1]["loss"] < 0.7 * told[0]["loss"]
    assert told[-1]["target/loss"] < 0.8 * told[15]["target/loss"]
    assert told[-1]["loss/1"] < 0.9 * told[0]["loss/1"]
    base = load_file(tiny_target_dir / "model.safetensors")
    at_phase = load_file(run / "checkpoints" / "step-00000016" / "target.safetensors")
    trained = load_file(run / "target" / "model.safetensors")
    assert all(torch.equal(at_phase[name], tensor) for name, tensor in base.items())
    assert all(not torch.equal(trained[name], tensor) for name, tensor in base.items())

    def generated(directory: Path) -> list[int]:
        """By transformers alone."""
        model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
        ids = tokenizer("the red river", return_tensors="pt")
        return list(model.generate(**ids, max_new_tokens=12, do_sample=False)[0].tolist())

    assert generated(run / "target") != generated(tiny_target_dir)
    for tree in ("chain", "9"):
        done = CliRunner().invoke(app, ["eval", str(run), f"algorithm.tree={tree}", "--json"])
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert found["conditions"]["target_step"] == 40
        assert all(method["outputs"] == {"identical": 4} for method in found["methods"][1:])


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_both_steps_give_a_target_that_learns_the_same_gradients(family_dir: Any, family: str) -> None:
    """Through the engine, on a real model: its own head, and one that is tied and soft-capped."""

    def gradients(implementation: Any) -> dict[str, torch.Tensor]:
        backbone = CausalLMBackbone(CausalLMConfig())
        target = backbone.load(TargetSection(path=str(family_dir(family))), "cpu")
        options = {"heads": 3, "train_target": True, "heads_first": 0.0, "implementation": implementation}
        algorithm = Medusa(MedusaConfig.model_validate(options))
        torch.manual_seed(0)
        draft = algorithm.build_draft(algorithm.draft_config(target.facts, DraftSection()), target, None)
        engine = TorchEngine(TorchEngineConfig(device="cpu"))
        engine.start()
        train = TrainSection(max_grad_norm=None)
        engine.prepare(StepModule(algorithm, draft, target, backbone.module(target)), train, 1)
        seen: dict[str, torch.Tensor] = {}
        engine.optimizer.register_step_pre_hook(
            lambda *_: seen.update({name: master.grad.clone() for name, master in engine.masters.masters.items()})
        )
        ids = torch.randint(3, 500, (2, 24), generator=torch.Generator().manual_seed(1))
        batch = Batch(ids, torch.arange(24).expand(2, 24) % 12, ids % 3 > 0, torch.arange(24).expand(2, 24) // 12)
        engine.train_step([(batch, Features())])
        return seen

    plain, fast = gradients("plain"), gradients("fast")
    assert plain.keys() == fast.keys()
    for name, expected in plain.items():
        torch.testing.assert_close(fast[name], expected, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert all(bool(gradient.any()) for gradient in fast.values())


@pytest.mark.parametrize("loss", ["tokens", "target"])
def test_a_text_learned_by_heart_is_accepted(tiny_target: Target, loss: Any) -> None:
    prompt, length = [5, 9, 30, 7], 40
    own = [token for e in decode(tiny_target, None, prompt, max_new_tokens=length) for token in e.tokens]
    algorithm = Medusa(MedusaConfig(heads=3, loss=loss))
    torch.manual_seed(0)
    draft = algorithm.build_draft(algorithm.draft_config(tiny_target.facts, DraftSection()), tiny_target, None)
    algorithm.init_draft(draft, tiny_target)
    ids = torch.tensor([prompt + own])
    batch = Batch(ids, torch.arange(ids.numel())[None], torch.arange(ids.numel())[None] >= len(prompt), ids * 0)
    plan = algorithm.capture_plan(tiny_target.facts)
    features = tiny_target.capture(batch, plan)
    optimizer = torch.optim.AdamW(algorithm.parameter_groups(draft, 0.0), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        denominator = algorithm.denominator(draft, batch, features)
        algorithm.training_step(draft, batch, features, tiny_target, denominator).loss.backward()
        optimizer.step()

    def emissions(tree: Any) -> list[Emission]:
        drafter = Medusa(MedusaConfig(heads=3, tree=tree)).drafter(draft, tiny_target)
        return list(decode(tiny_target, drafter, prompt, plan=plan, num_draft_tokens=3, max_new_tokens=length))

    for tree in ("chain", 12):
        found = emissions(tree)
        assert [token for e in found for token in e.tokens] == own
        rounds = found[1:]
        # Slots of the prompt are not trained on, so that the first round may accept less.
        assert sum(e.accepted for e in rounds[1:]) >= 0.9 * sum(e.proposed for e in rounds[1:])
        assert max(e.nodes for e in rounds) == (3 if tree == "chain" else 12)
