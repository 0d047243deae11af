"""What an algorithm promises of its training step."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch

from specdec_core.algorithm.draft import Draft
from specdec_core.capture.features import CapturePlan, Features
from specdec_core.config.run import Dtype
from specdec_core.engine.masters import cast_parameters
from specdec_core.errors import UserError
from specdec_core.testing.batches import pack, random_ids
from specdec_core.testing.bench import Step, TrainedBench
from specdec_core.testing.compare import assert_all_same, assert_close
from specdec_core.testing.promises import promise
from specdec_core.testing.step import OnTheBench, with_and_without_images
from specdec_core.testing.target import weights_of

STEPS, NEW_TOKENS = 20, 20
FALL = 0.98
"""The loss after `STEPS` steps, over what it was."""
TYPES: tuple[tuple[Dtype, Dtype], ...] = (("bfloat16", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16"))
COARSE = 0.1
"""How far bfloat16 may move a loss."""


class PlannedLayers(dict[int, torch.Tensor]):
    """The captured layers; asking for another one says so."""

    def __missing__(self, layer: int) -> torch.Tensor:
        raise AssertionError(f"layer {layer} is read; the capture plan names {sorted(self)}")


class TrainingContract(OnTheBench):
    """`same_step` holds changes of the options under which the step must stay the same: a faster way to compute it."""

    same_step: ClassVar[Sequence[Mapping[str, Any]]] = ()

    @promise("planned-captures")
    def test_only_planned_captures_are_read(self) -> None:
        """The step and the drafter get what the plan names; what it does not name is not there."""
        bench = self.trained()
        layers, count = bench.plan.layers, bench.facts.num_layers
        assert all(0 <= layer <= count for layer in layers), f"the plan names layers {layers}; ids are 0 to {count}"
        assert len({*layers}) == len(layers), f"the plan names a layer twice: {layers}"
        draft = bench.draft()
        batch, features = pack([bench.documents()])
        bench.step(draft, batch, _guarded(features))
        verified = bench.verified(range(3, 12))
        drafter = bench.drafter(draft)
        drafter.begin(type(verified)(verified.ids, _guarded(verified.features), 0))

    @promise("target-untouched")
    def test_the_target_is_left_alone(self) -> None:
        """The tiny target has the methods of the contract only, and its weights are compared with what they were."""
        bench = self.trained()
        draft, documents = bench.random_draft(), bench.documents()
        bench.algorithm.init_draft(draft, bench.target)
        with contextlib.suppress(UserError):  # an algorithm without a closed-form start says so
            bench.algorithm.fit_draft(draft, bench.target, [pack([documents])])
        if not bench.algorithm.trains_target:
            bench.train(draft, documents, 1)
        drafter = bench.drafter(draft)
        drafter.begin(bench.verified(range(3, 12)))
        assert bench.target.is_untouched, "a weight of the target was changed, or takes part in autograd"

    @promise("target-learns")
    def test_gradients_reach_a_target_that_learns(self) -> None:
        """Features are captured in the step, with gradients; the denominators are asked for without features."""
        bench = self._learning()
        draft, (batch, features) = bench.draft(), pack([bench.documents()])
        denominator = bench.denominator(draft, batch, features)
        weights = weights_of(bench.target).requires_grad_()
        captured = bench.target.capture(batch, bench.plan)
        output = bench.algorithm.training_step(draft, batch, captured, bench.target, denominator)
        output.loss.backward()  # type: ignore[no-untyped-call]
        for name, weight in weights.named_parameters():
            assert weight.grad is not None, f"no gradient reaches {name} of the target"
            assert bool(weight.grad.isfinite().all()), f"the gradient of {name} of the target is not finite"
            assert bool(weight.grad.any()), f"the gradient of {name} of the target is zero everywhere"

    @promise("target-learns")
    def test_a_target_that_learns_comes_to_say_its_text(self) -> None:
        """Tokens in no order that could be guessed; at least half of them must become its first choice."""
        bench = self._learning()
        document = bench.document(random_ids(NEW_TOKENS, bench.facts.vocab_size, 12))
        bench.train(bench.random_draft(), [document], STEPS)
        last_hidden = bench.target.capture(pack([[document]])[0], CapturePlan(last_hidden=True)).last_hidden
        assert last_hidden is not None
        said = bench.target.logits(last_hidden[0, :-1]).argmax(-1) == document.ids[1:]
        share = float(said.float().mean())
        assert share >= 0.5, f"after {STEPS} steps on a text the target says {share:.2f} of it, expected half at least"

    def _learning(self) -> TrainedBench:
        """The bench for a test of a target that learns, which is skipped where none does."""
        bench = self.trained()
        if not bench.algorithm.trains_target:
            pytest.skip(f"algorithm {self.name} leaves the target frozen")
        return bench

    @promise("rebuilt-from-config")
    def test_a_draft_is_rebuilt_from_its_config(self) -> None:
        """Checkpoints hold the draft's config as JSON."""
        bench = self.trained()
        config = json.loads(json.dumps(bench.config))
        again = bench.algorithm.build_draft(config, bench.target, bench.vocab)
        found, expected = ({n: list(x.shape) for n, x in d.state_dict().items()} for d in (again, bench.random_draft()))
        assert found == expected, f"from JSON the draft has the tensors {found}, else {expected}"
        strange = {str(p.dtype) for p in again.parameters()} | {p.device.type for p in again.parameters()}
        assert strange <= {"torch.float32", "cpu"}, f"a draft is built on the CPU in float32, not in {strange}"

    @promise("seeded")
    def test_a_seed_decides_everything(self) -> None:
        """With dropout and the like switched on; the second time another draft and batch came before."""
        benches = [self.trained() for _ in range(2)]
        batch, features = pack([benches[0].documents()])
        benches[1].step(benches[1].draft(seed=1), *pack([benches[1].documents()[::-1]]))

        def run(bench: TrainedBench) -> tuple[Draft, Step]:
            draft = bench.draft(seed=3).train()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(4)
                return draft, bench.step(draft, batch, features)

        (first_draft, first), (second_draft, second) = map(run, benches)
        assert_all_same(second_draft.state_dict(), first_draft.state_dict(), "built twice, the draft's")
        assert second.loss == first.loss, f"the loss is {second.loss:.6g} the second time, {first.loss:.6g} the first"
        assert_all_same(second.gradients, first.gradients, "computed twice, the gradient of")

    @promise("loss-falls")
    def test_the_loss_falls_on_a_repeated_batch(self) -> None:
        """Through the engine `torch`, from the start that a run takes by default."""
        bench = self.trained()
        draft = bench.random_draft()
        bench.algorithm.init_draft(draft, bench.target)
        losses = bench.train(draft, bench.documents(), STEPS)
        assert losses[-1] < FALL * losses[0], f"the loss goes from {losses[0]:.4g} to {losses[-1]:.4g} in {STEPS} steps"

    @promise("learns-to-guess")
    def test_a_draft_comes_to_guess_a_text_that_it_learns(self) -> None:
        """A text of the target's own; at least half of what the draft can say of it, as `accuracy/1` counts."""
        bench = self.trained()
        (text,) = bench.target.generate([[5, 9, 7]], NEW_TOKENS)
        document, draft = bench.document([5, 9, 7, *text]), bench.random_draft()
        bench.train(draft, [document], STEPS)
        accuracy = bench.rows(draft, [[document]]).metrics.get("accuracy/1")
        if accuracy is None:
            pytest.skip("the training step has no metric accuracy/1")
        sayable = {*bench.sayable.tolist()}
        share, possible = float(accuracy.sum / accuracy.count), sum(token in sayable for token in text) / len(text)
        assert share >= possible / 2, (
            f"after {STEPS} steps on a text accuracy/1 is {share:.2f}, of {possible:.2f} that can be"
        )

    @promise("gradients")
    def test_gradients_reach_every_trained_parameter(self) -> None:
        """And `parameter_groups` hands each to the optimizer once."""
        bench = self.trained()
        draft = bench.draft()
        gradients = bench.rows(draft, [bench.documents()]).gradients
        groups = bench.algorithm.parameter_groups(draft, 0.1)
        grouped = [id(parameter) for group in groups for parameter in group["params"]]
        for name, parameter in draft.named_parameters():
            times = grouped.count(id(parameter))
            assert times == parameter.requires_grad, f"parameter_groups names {name} {times} times"
            if parameter.requires_grad:
                assert name in gradients, (
                    f"no gradient reaches {name}; if it is not to be trained, say requires_grad_(False)"
                )
                assert bool(gradients[name].isfinite().all()), f"the gradient of {name} is not finite"
                assert bool(gradients[name].any()), f"the gradient of {name} is zero everywhere"
            else:
                assert name not in gradients, f"a gradient reaches {name}, which is frozen"

    @promise("own-parameters")
    def test_no_parameter_has_two_names(self) -> None:
        """Nor memory in common with another."""
        names: dict[int, str] = {}
        for name, parameter in self.trained().random_draft().named_parameters(remove_duplicate=False):
            other = names.setdefault(parameter.data_ptr(), name)
            assert other == name, f"{other} and {name} are one parameter; what is to learn apart must not share it"

    @promise("micro-batches")
    def test_any_split_into_micro_batches_gives_the_same_step(self) -> None:
        """Each part is divided by the denominators of the whole."""
        bench = self.trained()
        draft, rows = bench.draft(), [[document] for document in bench.documents()]
        whole = bench.rows(draft, rows)
        bench.micro_batches(draft, [[row] for row in rows]).assert_equals(whole)
        bench.micro_batches(draft, [rows[:2], rows[2:]]).assert_equals(whole)

    @promise("denominators")
    def test_the_loss_is_divided_by_the_denominators(self) -> None:
        """Twice the denominators is half the loss, and half of each gradient."""
        bench = self.trained()
        draft, (batch, features) = bench.draft(), pack([bench.documents()])
        denominator = bench.denominator(draft, batch, features)
        assert denominator.ndim == 1, f"the denominators have shape {list(denominator.shape)}; they are one vector [K]"
        assert denominator.is_floating_point(), f"the denominators are {denominator.dtype}; they are added up as floats"
        assert bool((denominator > 0).all()), f"the denominators of a batch with learned tokens are {denominator}"
        once, twice = (bench.step(draft, batch, features, factor * denominator) for factor in (1, 2))
        assert_close(2 * twice.loss, once.loss, "twice the loss under twice the denominators")
        for name, gradient in once.gradients.items():
            assert_close(
                2 * twice.gradients[name], gradient, f"twice the gradient of {name} under twice the denominators"
            )

    @promise("metrics")
    def test_metrics_are_sums_and_counts(self) -> None:
        """Those of a batch are those of its rows, added up; shares lie between 0 and 1."""
        bench = self.trained()
        draft, rows = bench.draft(), [[document] for document in bench.documents()]
        whole = bench.rows(draft, rows)
        for name, metric in whole.metrics.items():
            for part, value in (("sum", metric.sum), ("count", metric.count)):
                assert value.ndim == 0, f"the {part} of metric {name} has shape {list(value.shape)}; it is one number"
            assert metric.count > 0, f"metric {name} counts {metric.count} on a batch with learned tokens"
            if name.partition("/")[0] in ("accuracy", "acceptance"):
                assert 0 <= metric.sum <= metric.count, f"metric {name} is {metric.sum} of {metric.count}"
        bench.micro_batches(draft, [[row] for row in rows]).assert_metrics_equal(whole)

    @promise("mixed-types")
    def test_draft_and_target_may_be_of_different_types(self) -> None:
        """A bfloat16 draft, a bfloat16 target, and both."""
        exact = self.trained()
        expected = exact.rows(exact.draft(), [exact.documents()]).loss
        for draft_type, target_type in TYPES:
            bench, what = self.trained(target_type), f"with a {draft_type} draft and a {target_type} target"
            draft = bench.draft()
            cast_parameters(draft, getattr(torch, draft_type))
            step = bench.rows(draft, [bench.documents()])
            assert_close(step.loss, expected, f"the loss {what}", COARSE)
            drafter = bench.drafter(draft)
            drafter.begin(bench.verified(range(3, 12)))

    @promise("same-step")
    @with_and_without_images
    def test_a_faster_way_computes_the_same_step(self, images: bool) -> None:
        """For every change of options in `same_step`."""
        bench = self.trained(images=images)
        expected = bench.rows(bench.draft(), [bench.documents()])
        for changes in self.same_step:
            other = TrainedBench(self.load(**changes), self.vocab_size, images=images)
            other.rows(other.draft(), [other.documents()]).assert_equals(expected)


def _guarded(features: Features) -> Features:
    return Features(PlannedLayers(features.hidden), features.last_hidden, features.embeds, features.argmax)
