"""The closed-form start against regressions on explicit rows, and what the draft computes after it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from eagle3_support import HIDDEN, VOCAB, MatrixTarget, make, random_batch
from torch import Tensor

from specdec_core.algorithm.base import TrainedAlgorithm
from specdec_core.capture.features import CapturePlan, Features
from specdec_core.config.run import DraftSection
from specdec_core.data.batch import Batch
from specdec_core.data.vocab import VocabMap
from specdec_core.errors import UserError
from specdec_eagle3 import fit
from specdec_eagle3.algorithm import Eagle3
from specdec_eagle3.config import Eagle3Config
from specdec_eagle3.fit import Moments, Sample, solve
from specdec_eagle3.model import Eagle3Draft
from specdec_eagle3.plain import DenseAttention

EPS = 1e-5


class RecurrentTarget(MatrixTarget):
    """A linear recurrence over the document's embeddings; the captured states are mixtures of its state.

    The embeddings share a large coordinate, as those of real models do, and one coordinate of the captured states is
    huge. Two key heads of 16 carry any step of 32.
    """

    def __init__(self, head_dim: int = 16) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.facts = replace(self.facts, head_dim=head_dim)
        self.table[:, 0] = 10
        self.turn = torch.linalg.qr(draw(HIDDEN, HIDDEN)).Q * 0.7
        self.read = draw(HIDDEN, HIDDEN) / HIDDEN**0.5
        self.mix = {layer: draw(HIDDEN, HIDDEN) / HIDDEN**0.5 for layer in (9, 2, 6)}
        self.layers[12] = {"weight": 0.5 + torch.rand(HIDDEN, generator=generator)}

    def capture(self, batch: Batch, plan: CapturePlan) -> Features:  # type: ignore[override]
        states = torch.zeros(*batch.ids.shape, HIDDEN)
        for row, slot in (batch.document_ids >= 0).nonzero().tolist():
            before = states[row, slot - 1] if batch.positions[row, slot] > 0 else torch.zeros(HIDDEN)
            states[row, slot] = self.turn @ before + self.read @ self.table[batch.ids[row, slot]]
        hidden = {layer: torch.tanh(states @ mix / 4) for layer, mix in self.mix.items()}
        hidden[6][..., 5] *= 300
        return Features(hidden, rms(states) * self.layers[12]["weight"])


def rms(x: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt()


def sample_of(target: RecurrentTarget, seeds: tuple[int, ...] = (1, 2), rows: int = 4) -> list[tuple[Batch, Features]]:
    batches = [random_batch(seed, rows, length=100)[0] for seed in seeds]
    return [(batch, target.capture(batch, CapturePlan())) for batch in batches]


def build(
    options: Eagle3Config, vocab: int | None = None, head_dim: int = 16
) -> tuple[Eagle3, Eagle3Draft, RecurrentTarget]:
    """The draft after `init_draft`."""
    algorithm, target = Eagle3(options), RecurrentTarget(head_dim)
    ids = None if vocab is None else VocabMap(torch.arange(vocab) * (VOCAB - 1) // (vocab - 1), VOCAB)
    torch.manual_seed(0)
    draft = algorithm.build_draft(algorithm.draft_config(target.facts, DraftSection(vocab_size=vocab)), target, ids)
    algorithm.init_draft(draft, target)
    return algorithm, draft, target


def explicit_rows(target: RecurrentTarget, sample: Sample, options: Eagle3Config) -> dict[str, Tensor]:
    """What regression reads, slot by slot, float64."""
    weight = target.layers[12]["weight"].double()
    rows: dict[str, list[Tensor]] = {name: [] for name in "1hesz"}
    for batch, features in sample:
        assert features.last_hidden is not None
        last = features.last_hidden.double()
        for r in range(batch.ids.shape[0]):
            mask, document = batch.loss_mask[r].tolist(), [*batch.document_ids[r].tolist(), -1, -1]
            for t in range(len(mask)):
                end = t + 2 if options.mask == "strict" else t + 1
                if document[t] == -1 or document[end] != document[t] or not all(mask[t + 1 : end + 1]):
                    continue
                states = [features.hidden[layer][r, t].double() for layer in (2, 6, 9)]
                token = target.table[batch.ids[r, t + 1]] if features.embeds is None else features.embeds[r, t + 1]
                rows["1"].append(torch.ones(1, dtype=torch.float64))
                rows["h"].append(torch.cat([rms(x) for x in states] if options.fc_norm else states))
                rows["e"].append(rms(token.double()))
                rows["s"].append(last[r, t] if options.norm_output else last[r, t] / weight)
                rows["z"].append(last[r, t + 1] / weight)
    return {name: torch.stack(found) for name, found in rows.items()}


def moments_of(rows: dict[str, Tensor]) -> Moments:
    x = torch.cat(list(rows.values()), dim=1)
    parts, start = {}, 0
    for name, part in rows.items():
        parts[name] = slice(start, start + part.shape[1])
        start += part.shape[1]
    return Moments(x.T @ x / len(x), parts)


def ridge(x: Tensor, y: Tensor) -> Tensor:
    """Least squares on the rows and, for the ridge, on one more row per regressor."""
    power = x.square().mean(0)
    shrink = (power * fit._RIDGE + power.mean() * 1e-6) * len(x)
    more = torch.cat([x, torch.diag(shrink.sqrt())])
    return torch.linalg.lstsq(more, torch.cat([y, y.new_zeros(x.shape[1], y.shape[1])]), driver="gelsd").solution


class TestMoments:
    @pytest.mark.parametrize(
        "options", [{}, {"mask": "speculators"}, {"fc_norm": True}, {"norm_output": True}, {"steps": 1}]
    )
    def test_moments_of_several_packed_batches_are_those_of_their_supervised_slots(
        self, options: dict[str, Any]
    ) -> None:
        algorithm, draft, target = build(Eagle3Config(**options))
        sample = sample_of(target)
        rows = explicit_rows(target, sample, algorithm.options)
        expected, found = moments_of(rows), Moments.of(draft, target, iter(sample), algorithm.options)
        for left in "1hesz":
            for right in "1hesz":
                ours, theirs = found(left, right), expected(left, right)
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=float(theirs.abs().max()) * 1e-5)
        assert found("se", "z").shape == (2 * HIDDEN, HIDDEN)

    def test_merged_input_embeddings_take_the_place_of_the_tables(self) -> None:
        algorithm, draft, target = build(Eagle3Config())
        sample = [(b, replace(f, embeds=torch.randn(*b.ids.shape, HIDDEN))) for b, f in sample_of(target)]
        expected = moments_of(explicit_rows(target, sample, algorithm.options))
        found = Moments.of(draft, target, sample, algorithm.options)
        torch.testing.assert_close(found("e", "ez"), expected("e", "ez"), rtol=1e-4, atol=1e-4)

    def test_what_stands_in_unsupervised_slots_does_not_count(self) -> None:
        algorithm, draft, target = build(Eagle3Config(layers=(2, 6, 9)))
        (batch, features), *_ = sample_of(target)
        padding = (batch.document_ids < 0).unsqueeze(-1)
        assert padding.any()
        noisy = features.map(lambda x: torch.where(padding, torch.full_like(x, 1e6), x))
        one, other = (Moments.of(draft, target, [(batch, f)], algorithm.options) for f in (features, noisy))
        assert torch.equal(one.mean, other.mean)


class TestSolve:
    @pytest.mark.parametrize("norm_before_residual", [False, True])
    def test_solution_is_that_of_least_squares_on_the_rows(self, norm_before_residual: bool) -> None:
        _, _, target = build(Eagle3Config())
        rows = explicit_rows(target, sample_of(target), Eagle3Config())
        found = solve(moments_of(rows), norm_before_residual)

        h, e, s, z = (rows[name] for name in "hesz")
        both = ridge(torch.cat([s, e], 1), z)
        move, add = both[:HIDDEN], both[HIDDEN:]
        # h F [M, w I] ~ [z - e A, w s]: regression on h, then on the matrix at its right.
        weight, one = fit._AGREEMENT**0.5, torch.eye(HIDDEN, dtype=torch.float64)
        right = torch.cat([move, weight * one], 1)
        halfway = ridge(h, torch.cat([z - e @ add, weight * s], 1))
        fc = torch.linalg.lstsq(right.T, halfway.T).solution.T
        torch.testing.assert_close(found.fc, fc, rtol=1e-6, atol=1e-9)

        g = h @ fc
        size = g.square().mean().sqrt()
        own = size * move - one if norm_before_residual else size * (move - one)
        torch.testing.assert_close(found.step, torch.cat([add, own]), rtol=1e-6, atol=1e-9)
        inputs = torch.cat([e, g / size], 1)
        torch.testing.assert_close(found.inputs, inputs.T @ inputs / len(inputs), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found.mean, inputs.mean(0), rtol=1e-6, atol=1e-9)

        # The factor that brings the output, scaled to unit power, nearest to z.
        unit = (g @ move + e @ add).flatten()
        unit = unit / unit.square().mean().sqrt()
        best = torch.linalg.lstsq(unit[:, None], z.flatten()[:, None]).solution.item()
        assert found.scale == pytest.approx(best)
        assert 0 < best < 1


def fitted(options: Eagle3Config, **of: Any) -> tuple[Eagle3, Eagle3Draft, RecurrentTarget, Sample]:
    algorithm, draft, target = build(options, **of)
    sample = sample_of(target, seeds=(1, 2, 3, 4))
    algorithm.fit_draft(draft, target, sample)
    return algorithm, draft, target, sample


def outputs(draft: Eagle3Draft, batch: Batch, features: Features, documents: Tensor) -> Tensor:
    """The first step's backbone outputs, [B, S, H]."""
    following = torch.cat([batch.ids[:, 1:], batch.ids[:, :1]], 1)
    plan, states = DenseAttention(documents, len(draft.layers)), draft.project_hidden_states(features.stacked())
    return draft.backbone(draft.embed_input_ids(following), states, plan, batch.positions)


@torch.no_grad()
def linear_step(draft: Eagle3Draft, batch: Batch, features: Features, sample: Sample, options: Eagle3Config) -> Tensor:
    """What `outputs` should be, from the solution alone."""
    solution = solve(Moments.of(draft, draft.target, sample, options), options.norm_before_residual)
    following = torch.cat([batch.ids[:, 1:], batch.ids[:, :1]], 1)
    states = features.stacked()
    if options.fc_norm:
        states = torch.cat([rms(part) for part in states.chunk(3, -1)], -1)
    g = states.double() @ solution.fc
    e = rms(draft.target.embed(following).double())
    residual = rms(g) if options.norm_before_residual else g
    return (residual + torch.cat([e, rms(g)], -1) @ solution.step).float()


def loss(algorithm: Eagle3, draft: Eagle3Draft, target: RecurrentTarget, sample: Sample, step: int = 1) -> float:
    total = count = 0.0
    with torch.no_grad():
        for batch, features in sample:
            ones = torch.ones(algorithm.options.steps)
            metric = algorithm.training_step(draft, batch, features, target, ones).metrics[f"loss/{step}"]
            total, count = total + float(metric.sum), count + float(metric.count)
    return total / count


VARIANTS: list[dict[str, Any]] = [
    {},
    {"norm_before_residual": True},
    {"norm_output": True},
    {"fc_norm": True},
    {"num_layers": 2},
    {"preset": "eagle3.1", "norm_before_residual": True, "num_layers": 2},
]


class TestFit:
    @pytest.mark.parametrize("options", VARIANTS)
    @torch.no_grad()
    def test_a_slot_that_sees_itself_alone_makes_the_linear_step(self, options: dict[str, Any]) -> None:
        algorithm, draft, _, sample = fitted(Eagle3Config(steps=3, **options))
        (batch, features), *_ = sample
        alone = torch.arange(batch.ids.numel()).view(batch.ids.shape)
        expected = linear_step(draft, batch, features, sample, algorithm.options)
        torch.testing.assert_close(outputs(draft, batch, features, alone), expected, rtol=1e-3, atol=1e-3)

    @torch.no_grad()
    def test_a_slot_in_its_document_sees_mostly_itself(self) -> None:
        algorithm, draft, target = build(Eagle3Config(steps=3))
        sample = sample_of(target, seeds=(1, 2, 3, 4))
        for projection in (draft.layers[0].self_attn.q_proj, draft.layers[0].self_attn.k_proj):
            projection.weight.normal_(generator=torch.Generator().manual_seed(6))
        algorithm.fit_draft(draft, target, sample)
        (batch, features), *_ = sample
        real = batch.document_ids >= 0
        expected = linear_step(draft, batch, features, sample, algorithm.options)[real]
        found = outputs(draft, batch, features, batch.document_ids)[real]
        error = float((found - expected).norm() / expected.norm())
        # 3.5 nats leave 3% to the slot before; the constant that its inputs make is not quite one.
        assert error < 0.1

    def test_heads_without_output_keep_their_queries_but_on_the_pairs_that_tell_neighbours_apart(self) -> None:
        algorithm, draft, target = build(Eagle3Config())
        weight = draft.layers[0].self_attn.q_proj.weight
        before = weight.detach().clone().view(4, 16, -1)
        algorithm.fit_draft(draft, target, sample_of(target))
        after = weight.detach().view(4, 16, -1)
        # Two of four heads carry the step; of eight pairs, three turn by more than 0.05 a slot.
        fast = torch.tensor([0, 1, 2, 8, 9, 10])
        slow = torch.tensor([i for i in range(16) if i not in fast])
        for head in (1, 3):
            assert not after[head, fast].any()
            assert torch.equal(after[head, slow], before[head, slow])

    @pytest.mark.parametrize("vocab", [None, 30])
    @pytest.mark.parametrize("options", VARIANTS)
    def test_loss_falls_below_that_of_the_targets_own_weights(self, options: dict[str, Any], vocab: int | None) -> None:
        algorithm, draft, target = build(Eagle3Config(steps=3, **options), vocab)
        sample, unseen = sample_of(target, seeds=(1, 2, 3, 4)), sample_of(target, seeds=(8,))
        before = [loss(algorithm, draft, target, data, step) for data in (sample, unseen) for step in (1, 2, 3)]
        algorithm.fit_draft(draft, target, sample)
        after = [loss(algorithm, draft, target, data, step) for data in (sample, unseen) for step in (1, 2, 3)]
        assert all(b < a for a, b in zip(before, after, strict=True))

    def test_value_heads_of_too_small_a_rank_still_lower_the_loss(self) -> None:
        algorithm, draft, target = build(Eagle3Config(steps=2), head_dim=8)
        sample = sample_of(target)
        before = loss(algorithm, draft, target, sample)
        algorithm.fit_draft(draft, target, sample)
        assert loss(algorithm, draft, target, sample) < before

    @torch.no_grad()
    def test_value_heads_of_too_small_a_rank_err_least_where_inputs_vary_most(self) -> None:
        algorithm, draft, target = build(Eagle3Config(steps=2), head_dim=8)
        sample = sample_of(target)
        solution = solve(Moments.of(draft, target, sample, algorithm.options), False)
        algorithm.fit_draft(draft, target, sample)
        attention = draft.layers[0].self_attn
        # Query heads 0 and 2 of four read key heads 0 and 1.
        carried = torch.cat([attention.o_proj.weight[:, :8], attention.o_proj.weight[:, 16:24]], 1)
        missed = solution.step - (carried @ attention.v_proj.weight).T.double()
        power = (missed.T @ solution.inputs @ missed).trace()
        wanted = solution.step.T @ solution.inputs @ solution.step
        least = torch.linalg.eigvalsh(wanted)[:-16].sum()
        assert float(power) == pytest.approx(float(least), rel=1e-3)

    def test_the_rest_stays_as_it_was(self) -> None:
        algorithm, draft, target = build(Eagle3Config(num_layers=2, fc_norm=True))
        before = {name: p.clone() for name, p in draft.named_parameters()}
        algorithm.fit_draft(draft, target, sample_of(target))
        kept = {name for name, p in draft.named_parameters() if torch.equal(p, before[name])}
        mlp = {f"layers.{i}.mlp.{name}_proj.weight" for i in range(2) for name in ("gate", "up")}
        norms = {f"layers.{i}.post_attention_layernorm.weight" for i in range(2)} | {
            f"fc_norm.{i}.weight" for i in range(3)
        }
        second = {f"layers.1.self_attn.{name}_proj.weight" for name in "qkv"} | {"layers.1.input_layernorm.weight"}
        assert kept == {"lm_head.weight"} | mlp | norms | second

    def test_a_sample_of_fewer_slots_than_coordinates_is_enough(self) -> None:
        algorithm, draft, target = build(Eagle3Config(steps=2))
        batch = Batch(
            torch.arange(8).view(1, 8),
            torch.arange(8).view(1, 8),
            torch.ones(1, 8, dtype=torch.bool),
            torch.zeros(1, 8, dtype=torch.int64),
        )
        algorithm.fit_draft(draft, target, [(batch, target.capture(batch, CapturePlan()))])
        assert all(bool(p.isfinite().all()) for p in draft.parameters())

    def test_a_wide_draft_can_be_fitted_to_a_few_repeated_tokens(self) -> None:
        wide = 576
        algorithm, target = Eagle3(Eagle3Config()), MatrixTarget()
        target.facts = replace(target.facts, hidden_size=wide)
        target.table = torch.randn(VOCAB, wide, generator=torch.Generator().manual_seed(1))
        target.table[:, 0] = 60
        target.layers[12] = {"weight": torch.ones(wide)}
        draft = algorithm.build_draft(algorithm.draft_config(target.facts, DraftSection()), target, None)
        slots = torch.arange(40).unsqueeze(0)
        batch = Batch(slots % 8, slots, slots >= 0, torch.zeros_like(slots))
        generator = torch.Generator().manual_seed(2)
        states = {layer: torch.randn(1, 40, wide, generator=generator) for layer in (2, 6, 9)}
        features = Features(states, torch.randn(1, 40, wide, generator=generator))
        algorithm.fit_draft(draft, target, [(batch, features)])
        assert all(bool(p.isfinite().all()) for p in draft.parameters())

    @pytest.mark.parametrize("number", [0, 2])
    def test_a_sample_without_supervision_is_refused(self, number: int) -> None:
        algorithm, draft, target = build(Eagle3Config())
        silent = [(replace(b, loss_mask=torch.zeros_like(b.loss_mask)), f) for b, f in sample_of(target)]
        with pytest.raises(UserError, match=r'^draft.init = "fitted" found nothing supervised .*; use "target"$'):
            algorithm.fit_draft(draft, target, silent[:number])

    def test_an_algorithm_without_such_a_start_says_so(self) -> None:
        algorithm, draft, target = build(Eagle3Config())
        with pytest.raises(UserError, match=r'no closed-form start; use draft.init = "target" or "random"$'):
            TrainedAlgorithm.fit_draft(algorithm, draft, target, [])


class TestParameterGroups:
    @pytest.mark.parametrize("options", [{}, {"num_layers": 2, "fc_norm": True}, {"head": "frozen"}])
    def test_each_trained_parameter_is_in_one_group_and_a_frozen_head_in_none(self, options: dict[str, Any]) -> None:
        algorithm, draft, _ = make(Eagle3Config(**options), 20)
        members = [id(p) for group in algorithm.parameter_groups(draft, 0.1) for p in group["params"]]
        expected = {id(p) for name, p in draft.named_parameters() if (name, options.get("head")) != FROZEN}
        assert len(members) == len(set(members))
        assert set(members) == expected

    def test_fc_has_a_group_and_a_learning_rate_of_its_own(self) -> None:
        algorithm, draft, _ = make(Eagle3Config(fc_lr_scale=0.25), 20)
        *others, own = algorithm.parameter_groups(draft, 0.1)
        assert [id(p) for p in own["params"]] == [id(draft.fc.weight)]
        assert (own["lr_scale"], own["weight_decay"]) == (0.25, 0.1)
        assert all(group.get("lr_scale", 1.0) == 1.0 for group in others)

    def test_matrices_decay_and_vectors_do_not(self) -> None:
        algorithm, draft, _ = make(Eagle3Config(fc_norm=True), 20)
        for group in algorithm.parameter_groups(draft, 0.1):
            for parameter in group["params"]:
                assert group["weight_decay"] == (0.1 if parameter.ndim == 2 else 0.0)


FROZEN = ("lm_head.weight", "frozen")
