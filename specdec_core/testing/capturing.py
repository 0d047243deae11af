"""What a backbone promises of captures, teachers and generation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specdec_core.capture.features import CapturePlan
from specdec_core.errors import UserError
from specdec_core.testing.compare import assert_close
from specdec_core.testing.family import Family, assert_features, everything, planned
from specdec_core.testing.plugin import PluginContract
from specdec_core.testing.promises import promise

FIELDS = ("last_hidden", "embeds", "argmax")
PACKINGS = (
    [[21]],
    [[7], [3], [12]],
    [[5, 1, 9, 17], [2], [20, 8]],
)
"""Lengths of the documents of each row."""


class CapturingContract(PluginContract):
    """Of a target that reads batches."""

    kind = "backbone"

    @promise("capture")
    def test_captures_are_the_models_own_states(self, family: Family) -> None:
        """Alone, in a padded batch and packed, each document has the states that the model gives it alone."""
        plan, seed = everything(family.target), 0
        for lengths in PACKINGS:
            rows = [[family.ids(length, seed := seed + 1) for length in row] for row in lengths]
            captured = family.target.capture(family.batch(rows), plan)
            for number, row in enumerate(rows):
                start = 0
                for document in row:
                    slots = slice(start, start := start + len(document))
                    found = captured.map(lambda x, n=number, s=slots: x[n : n + 1, s])  # type: ignore[misc]
                    what = f"documents of {lengths} tokens, row {number}, slots {slots.start} to {slots.stop}"
                    assert_features(found, family.features(document, plan), what)

    @promise("capture-plan")
    def test_a_capture_holds_what_the_plan_names(self, family: Family) -> None:
        """And it is the same as when everything is captured."""
        count, batch = family.target.facts.num_layers, family.batch([[family.ids(6, 1), family.ids(4, 2)]])
        whole = family.target.capture(batch, everything(family.target))
        for plan in (
            CapturePlan(),
            CapturePlan((1,)),
            CapturePlan((count, 0)),
            CapturePlan((1, count - 1), last_hidden=True),
            CapturePlan(embeds=True),
            CapturePlan((2,), argmax=True),
        ):
            found = family.target.capture(batch, plan)
            fields = [name for name in FIELDS if getattr(found, name) is not None]
            wanted = [name for name in FIELDS if getattr(plan, name)]
            assert fields == wanted, f"{plan} gives {', '.join(fields) or 'no field'}"
            assert {*found.hidden} == {*plan.layers}, f"{plan} gives layers {[*found.hidden]}"
            assert_features(found, planned(whole, plan), f"with {plan}")
        try:
            family.target.capture(batch, CapturePlan((count + 1,)))
        except UserError:
            return
        raise AssertionError(f"a plan with layer {count + 1} is not refused; ids are 0 to {count}")

    @promise("teacher")
    def test_the_teacher_is_the_models_own_distribution(self, family: Family) -> None:
        """Whole, over chosen tokens in any order, and in chunks; at no slot too."""
        target, ids = family.target, family.ids(21, 3)
        values = family.reference(ids)
        assert values.features.last_hidden is not None
        hidden, logits = values.features.last_hidden[0], values.logits
        assert_close(target.logits(hidden), logits, "logits at the model's post-norm states")
        for rows in (None, torch.tensor([0, 3, 17, 200]), torch.tensor([200, 3, 50])):
            teacher = target.teacher(hidden, rows)
            what = "the teacher's" if rows is None else f"for rows {rows.tolist()} the teacher's"
            assert_close(teacher.logits, logits if rows is None else logits[:, rows], f"{what} logits")
            assert_close(teacher.log_z, logits.logsumexp(-1), f"{what} log_z")
            assert torch.equal(teacher.argmax, logits.argmax(-1)), f"{what} argmax is not the model's"
            chunks = [*target.teacher_chunks(hidden, rows, 8)]
            sizes = [chunk.logits.shape[0] for chunk in chunks]
            assert sizes == [8, 8, 5], f"21 slots come in chunks of {sizes}, asked for 8"
            assert_close(torch.cat([chunk.logits for chunk in chunks]), teacher.logits, f"in chunks, {what} logits")
            assert_close(torch.cat([chunk.log_z for chunk in chunks]), teacher.log_z, f"in chunks, {what} log_z")
        assert target.teacher(hidden[:0]).argmax.numel() == 0, "a teacher of no slots holds something"

    @promise("embeddings")
    def test_embed_gives_what_the_first_layer_reads(self, family: Family) -> None:
        """Scaled, if the family scales its embeddings."""
        ids = family.ids(9, 4)
        expected = family.reference(ids).features.embeds
        assert expected is not None
        assert_close(family.target.embed(torch.tensor([ids])), expected, "embed")

    @promise("generation")
    def test_generation_is_greedy_and_ends_with_the_stop_token(self, family: Family) -> None:
        """A batch of prompts of several lengths, against the model's logits one token after the other."""
        check_generation(family, [family.ids(length, length) for length in (2, 9, 5)])


def check_generation(family: Family, prompts: Sequence[list[int]]) -> None:
    """What the target writes after each prompt of a batch is what the model alone would write, token by token."""
    written = family.target.generate(prompts, 10, family.extras(prompts))
    for prompt, found in zip(prompts, written, strict=True):
        assert 1 <= len(found) <= 10, f"asked for 10 tokens, {len(found)} came"
        logits = family.reference([*prompt, *found]).logits[len(prompt) - 1 : -1]
        expected = logits.argmax(-1).tolist()
        assert found == expected, f"after {len(prompt)} tokens it writes {found}, greedily the model {expected}"
        stops = [token in family.target.facts.stop_token_ids for token in found]
        assert len(found) == 10 or stops[-1], f"it writes {found}: short, and without a stop token at its end"
        assert not any(stops[:-1]), f"it writes {found}, and goes on after a stop token"
