"""The contract kit itself: what it says, what it knows, and that the core does without it."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from planting import ROOT, TABLES, edited, table

from specdec_core.algorithm.base import ExportedDraft
from specdec_core.algorithm.draft import Draft
from specdec_core.algorithm.proposal import Proposal, Verified
from specdec_core.capture.features import CapturePlan, Features
from specdec_core.data.batch import Batch
from specdec_core.target.base import Target, TargetFacts
from specdec_core.testing import AlgorithmContract, ExporterContract, VisionBackboneContract
from specdec_core.testing.batches import batch_of, random_ids
from specdec_core.testing.family import assert_features, everything, own_values, planned
from specdec_core.testing.promises import PROMISES, BrokenPromise, promise
from specdec_core.testing.target import FACTS, TinyTarget, states_saying, weights_of
from specdec_eagle3 import supervision
from specdec_eagle3.algorithm import Eagle3
from specdec_eagle3.drafter import Eagle3Drafter
from specdec_eagle3.model import Eagle3Draft
from specdec_medusa import algorithm as medusa
from specdec_medusa.drafter import MedusaDrafter

CONTRACTS = (AlgorithmContract, VisionBackboneContract, ExporterContract)


def sections() -> Iterator[tuple[str, str]]:
    """(anchor, text) of every section of docs/contracts.md that a promise could have."""
    page = (ROOT / "docs" / "contracts.md").read_text(encoding="utf-8")
    for part in page.split("\n### ")[1:]:
        heading, _, text = part.partition("\n\n")
        yield heading.lower().replace(" ", "-"), text


class TestPromises:
    def test_each_is_a_section_of_the_docs_that_begins_with_its_sentence(self) -> None:
        documented = dict(sections())
        assert sorted(documented) == sorted(PROMISES)
        for name, sentence in PROMISES.items():
            first, _, rest = documented[name].partition("\n\n")
            assert first.replace("\n", " ") == sentence
            assert rest.startswith("*Why.* ")
            assert "\n*How.* " in rest, name

    def test_each_has_a_test_in_a_contract(self) -> None:
        methods = [method for contract in CONTRACTS for _, method in inspect.getmembers(contract)]
        tested = {method.promise for method in methods if hasattr(method, "promise")}
        assert tested == {*PROMISES}

    def test_each_test_of_a_contract_is_of_a_promise_and_says_what_it_does(self) -> None:
        for contract in CONTRACTS:
            for name, method in inspect.getmembers(contract):
                if name.startswith("test_"):
                    assert hasattr(method, "promise"), name
                    assert method.__doc__, name

    def test_each_has_a_planted_bug_that_it_is_to_catch(self) -> None:
        bugs = [bug for path in TABLES for bug in table(path)]
        assert {bug.promise for bug in bugs} == {*PROMISES}
        assert len({bug.name for bug in bugs}) == len(bugs)
        assert len(bugs) > 100, "docs/contracts.md says more than a hundred"

    def test_the_planted_bugs_are_mistakes_that_an_author_makes(self, tmp_path: Path) -> None:
        """Not code that cannot run: any test would catch it, whatever it tests."""
        for number, bug in enumerate(bug for path in TABLES for bug in table(path)):
            for file, text in edited(bug.edits).items():
                (tmp_path / f"{bug.promise}_{number}_{file.replace('/', '_')}").write_text(text, encoding="utf-8")
        lint = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select", "E9,F821", str(tmp_path)]
        found = subprocess.run(lint, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout

    def test_a_broken_one_is_named_with_its_place_in_the_docs(self) -> None:
        class Broken:
            kind, name, waived = "algorithm", "mine", {}

            @promise("padding")
            def test_it(self) -> None:
                raise AssertionError("the loss differs by 3")

            @promise("padding")
            def test_crash(self) -> None:
                raise KeyError("x")

        with pytest.raises(BrokenPromise) as caught:
            Broken().test_it()
        assert str(caught.value) == (
            "padding is broken by algorithm mine.\nPadding changes nothing.\nthe loss differs by 3\n"
            "See docs/contracts.md#padding"
        )
        with pytest.raises(BrokenPromise, match="KeyError: 'x'"):
            Broken().test_crash()
        Broken.waived = {"padding": "it is a toy"}
        with pytest.raises(pytest.skip.Exception, match="padding is waived: it is a toy"):
            Broken().test_it()


def test_the_core_imports_neither_its_kit_nor_pytest() -> None:
    for path in (ROOT / "specdec_core").rglob("*.py"):
        if path.parent.name != "testing":
            statements = ast.parse(path.read_text(encoding="utf-8")).body
            names = {alias.name for node in statements if isinstance(node, ast.Import) for alias in node.names}
            names |= {str(node.module) for node in statements if isinstance(node, ast.ImportFrom)}
            assert not [name for name in names if name.startswith(("pytest", "specdec_core.testing"))], path


@pytest.fixture(scope="module")
def target() -> TinyTarget:
    return TinyTarget()


@pytest.fixture(scope="module")
def model(target: TinyTarget):  # type: ignore[no-untyped-def]
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=FACTS.vocab_size,
        hidden_size=FACTS.hidden_size,
        intermediate_size=FACTS.intermediate_size,
        num_hidden_layers=FACTS.num_layers,
        num_attention_heads=FACTS.num_attention_heads,
        num_key_value_heads=FACTS.num_key_value_heads,
        rms_norm_eps=FACTS.rms_norm_eps,
        attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    for index, layer in enumerate(model.model.layers):
        layer.load_state_dict(target.layer_state(index))
    model.model.norm.load_state_dict(target.layer_state(FACTS.num_layers))
    model.model.embed_tokens.weight.copy_(target.embed_rows())
    model.lm_head.weight.copy_(target.head_rows())
    return model


class TestTinyTarget:
    """Against a model of the same weights in transformers."""

    def test_captures_of_packed_rows_are_the_models(self, target: TinyTarget, model: object) -> None:
        rows = [[random_ids(9, FACTS.vocab_size, 1), random_ids(4, FACTS.vocab_size, 2)], [[5, 6, 7]]]
        captured = target.capture(batch_of(rows), everything(target))
        for found, ids in (
            (captured.map(lambda x: x[:1, :9]), rows[0][0]),
            (captured.map(lambda x: x[:1, 9:]), rows[0][1]),
            (captured.map(lambda x: x[1:, :3]), rows[1][0]),
        ):
            assert_features(found, own_values(model, ids).features, "of the tiny target")

    def test_a_session_computes_what_the_model_does_and_rolls_back(self, target: TinyTarget, model: object) -> None:
        plan, prompt = CapturePlan((2, 8), last_hidden=True), [5, 6, 7]
        session = target.decode(plan, 16)
        session.prefill(batch_of([[prompt]]))
        logits, features = session.forward(torch.tensor([8, 9, 10, 11]), [-1, 0, 0, 2])
        expected = own_values(model, [*prompt, 8, 10, 11])
        torch.testing.assert_close(logits[3], expected.logits[-1], rtol=1e-4, atol=1e-4)
        last = planned(expected.features, plan).select(slice(5, 6))
        assert_features(features.select(slice(3, 4)), last, "of the tiny target")
        session.keep([0, 2])
        assert session.length == 5
        logits, _ = session.forward(torch.tensor([12]))
        torch.testing.assert_close(logits[0], own_values(model, [*prompt, 8, 10, 12]).logits[-1], rtol=1e-4, atol=1e-4)

    def test_it_writes_what_the_model_writes(self, target: TinyTarget, model) -> None:  # type: ignore[no-untyped-def]
        (found,) = target.generate([[5, 6, 7]], 12)
        own = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=12, do_sample=False, eos_token_id=2)
        assert found == own[0, 3:].tolist()

    def test_its_first_choices_lead(self, target: TinyTarget) -> None:
        features = target.capture(batch_of([[random_ids(200, FACTS.vocab_size, 1)]]), CapturePlan(last_hidden=True))
        assert features.last_hidden is not None
        first, second = target.logits(features.last_hidden[0]).topk(2).values.T
        assert (first - second).min() > 1e-3

    def test_states_say_their_tokens(self, target: TinyTarget) -> None:
        tokens = torch.arange(FACTS.vocab_size)
        assert torch.equal(target.logits(states_saying(target, tokens)).argmax(-1), tokens)

    def test_what_is_not_promised_is_not_there(self, target: TinyTarget) -> None:
        public = {name for name in dir(target) if not name.startswith("_")} - {"is_untouched"}
        assert public == {name for name in dir(Target) if not name.startswith("_")} | {"facts", "device", "tokenizer"}

    def test_a_touched_one_is_noticed(self) -> None:
        target = TinyTarget()
        assert target.is_untouched
        target.embed_rows().zero_()
        target.layer_state(0)["mlp.up_proj.weight"].zero_()
        assert target.is_untouched
        weights_of(target).head[3] += 1
        assert not target.is_untouched


def mask_not_shifted(patch: pytest.MonkeyPatch) -> None:
    ahead = supervision.ahead
    patch.setattr(supervision, "ahead", lambda x, distance, fill: ahead(x, distance - 1, fill))


def other_feedback_in_decoding(patch: pytest.MonkeyPatch) -> None:
    feedback = Eagle3Draft.feedback
    patch.setattr(Eagle3Draft, "feedback", lambda draft, x: feedback(draft, x) * (1.5 if x.shape[:2] == (1, 1) else 1))


def guesses_not_forgotten(patch: pytest.MonkeyPatch) -> None:
    accept = Eagle3Drafter.accept

    def keeping(drafter: Eagle3Drafter, verified: Verified) -> None:
        drafter.verified = drafter.attention.length
        accept(drafter, verified)

    patch.setattr(Eagle3Drafter, "accept", keeping)


def denominators_ignored(patch: pytest.MonkeyPatch) -> None:
    step = Eagle3.training_step
    patch.setattr(Eagle3, "training_step", lambda self, *args: step(self, *args[:-1], args[-1] * 0 + 9))


def norm_not_exported(patch: pytest.MonkeyPatch) -> None:
    export = Eagle3.export

    def without(self: Eagle3, draft: Draft, facts: TargetFacts) -> ExportedDraft:
        found = export(self, draft, facts)
        return ExportedDraft(found.config, {**found.tensors, "norm.weight": torch.ones(facts.hidden_size)})

    patch.setattr(Eagle3, "export", without)


def guesses_repeated(patch: pytest.MonkeyPatch) -> None:
    propose = MedusaDrafter.propose

    def repeated(*args: Any) -> Proposal:
        proposal = propose(*args)
        assert proposal.parents is not None
        return Proposal(proposal.tokens.repeat(2), proposal.parents.repeat(2))

    patch.setattr(MedusaDrafter, "propose", repeated)


def target_taught_nothing_of_its_own(patch: pytest.MonkeyPatch) -> None:
    loss = medusa.target_loss

    def detached(batch: Batch, features: Features, *rest: Any) -> Any:
        return loss(batch, features.map(torch.Tensor.detach) if rest[-1].implementation == "fast" else features, *rest)

    patch.setattr(medusa, "target_loss", detached)


class Chain(AlgorithmContract):
    name = "eagle3"


class Tree(AlgorithmContract):
    name = "medusa"
    options: ClassVar[Any] = {"heads": 1, "tree": 3}


class Joint(AlgorithmContract):
    name = "medusa"
    options: ClassVar[Any] = {"train_target": True}
    same_step: ClassVar[Any] = [{"implementation": "plain"}]


@pytest.mark.parametrize(
    ("contract", "mistake", "test", "arguments"),
    [
        (Chain, mask_not_shifted, "test_what_comes_after_the_last_learned_token_changes_nothing", ()),
        (Chain, other_feedback_in_decoding, "test_greedy_proposals_are_what_the_training_step_would_choose", (False,)),
        (
            Chain,
            other_feedback_in_decoding,
            "test_sampled_proposals_come_from_the_distributions_of_the_training_step",
            (False,),
        ),
        (
            Chain,
            guesses_not_forgotten,
            "test_after_accept_a_drafter_is_as_if_it_had_begun_on_the_longer_text",
            (0.0, False),
        ),
        (Chain, denominators_ignored, "test_the_loss_is_divided_by_the_denominators", ()),
        (Chain, norm_not_exported, "test_every_trained_tensor_is_exported_and_no_other", ()),
        (Tree, guesses_repeated, "test_proposals_hold_target_ids_that_the_draft_can_say", ()),
        (Joint, target_taught_nothing_of_its_own, "test_a_faster_way_computes_the_same_step", (False,)),
    ],
)
def test_a_mistake_breaks_a_promise_that_was_kept(
    contract: type[AlgorithmContract],
    mistake: Callable[[pytest.MonkeyPatch], None],
    test: str,
    arguments: tuple[Any, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A few, made in this process; test_planted_bugs.py has many."""
    getattr(contract(), test)(*arguments)
    mistake(monkeypatch)
    with pytest.raises(BrokenPromise):
        getattr(contract(), test)(*arguments)
