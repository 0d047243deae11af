"""The draft's config: derived from the target, or read from a file and held against it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eagle3_support import MatrixTarget, facts, image_facts

from specdec_core.config.run import DraftSection
from specdec_core.errors import UserError, UserErrors
from specdec_core.target.base import TargetFacts
from specdec_eagle3.algorithm import Eagle3
from specdec_eagle3.config import Eagle3Config

MINIMAL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_attention_heads": 8,
    "vocab_size": 61,
}


def derived(target: TargetFacts | None = None, vocab_size: int | None = None, **options: Any) -> dict[str, Any]:
    return Eagle3(Eagle3Config(**options)).draft_config(target or facts(), DraftSection(vocab_size=vocab_size))


class TestDerived:
    def test_the_decoder_layer_has_the_targets_shape(self) -> None:
        config = derived()
        for key in (
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "rms_norm_eps",
            "max_position_embeddings",
            "rope_parameters",
            "vocab_size",
            "bos_token_id",
        ):
            assert config[key] == getattr(facts(), key), key
        assert config["eos_token_id"] == 2

    @pytest.mark.parametrize(("asked", "expected"), [(None, 61), (20, 20)])
    def test_draft_vocabulary_is_the_one_asked_for_or_the_whole(self, asked: int | None, expected: int) -> None:
        assert derived(vocab_size=asked)["draft_vocab_size"] == expected

    @pytest.mark.parametrize("positions", ["target", "temporal", "sequential"])
    def test_axes_of_positions_stand_there_if_the_draft_reads_them(self, positions: str) -> None:
        plain = {"rope_type": "default", "rope_theta": 5e5}
        axes = {"mrope_section": [2, 1, 1], "mrope_interleaved": True, "mrope_layout": "half"}
        config = derived(replace(facts(), rope_parameters={**plain, **axes}), positions=positions)
        assert config["rope_parameters"] == ({**plain, **axes} if positions == "target" else plain)
        assert config["rope_theta"] == 5e5

    @pytest.mark.parametrize(("layers", "expected"), [(8, (2, 4, 5)), (12, (2, 6, 9)), (30, (2, 15, 27))])
    def test_default_layers_lie_near_the_start_in_the_middle_and_near_the_end(
        self, layers: int, expected: tuple[int, ...]
    ) -> None:
        config = derived(facts(layers))
        assert tuple(config["eagle_aux_hidden_state_layer_ids"]) == expected
        nested = config["eagle_config"]["eagle_aux_hidden_state_layer_ids"]
        assert nested == [layer - 1 for layer in expected]
        assert Eagle3(Eagle3Config()).capture_plan(facts(layers)).layers == expected

    def test_named_layers_are_sorted_and_counted(self) -> None:
        config = derived(facts(4), layers=(4, 0))
        assert config["eagle_aux_hidden_state_layer_ids"] == [0, 4]
        assert config["num_aux_hidden_states"] == 2

    def test_the_plan_asks_for_the_top_token_only_where_the_teacher_is_filtered(self) -> None:
        for on in (True, False):
            plan = Eagle3(Eagle3Config(filter_teacher=on)).capture_plan(facts())
            assert (plan.last_hidden, plan.argmax, plan.embeds) == (True, on, False)

    def test_the_plan_asks_for_embeddings_where_a_draft_is_to_read_merged_ones(self) -> None:
        for on in (True, False):
            assert Eagle3(Eagle3Config()).capture_plan(replace(facts(), merged_embeds=on)).embeds is on

    def test_a_target_of_too_few_layers_needs_the_layers_named(self) -> None:
        for call in (lambda: derived(facts(7)), lambda: Eagle3(Eagle3Config()).capture_plan(facts(7))):
            with pytest.raises(UserError, match=r"^algorithm.layers: the target has 7 layers, too few .*layers=\["):
                call()

    @pytest.mark.parametrize("layers", [(), (1, 1, 2), (-1, 2), (2, 13)])
    def test_layers_that_repeat_or_that_the_target_lacks_are_refused(self, layers: tuple[int, ...]) -> None:
        with pytest.raises(UserError, match=r"^algorithm.layers is \[.*distinct layer ids from 0 to 12$"):
            derived(layers=layers)

    def test_a_draft_vocabulary_larger_than_the_targets_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"^draft.vocab_size is 62; .* holds 61 tokens$"):
            derived(vocab_size=62)

    def test_a_vocabulary_map_of_another_size_is_refused(self) -> None:
        algorithm = Eagle3(Eagle3Config())
        with pytest.raises(UserError, match=r"draft_vocab_size 20, the vocabulary map 61 tokens$"):
            algorithm.build_draft(derived(vocab_size=20), MatrixTarget(), None)


class TestRead:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "draft.json"

    def read(
        self, path: Path, content: Any, vocab_size: int | None = None, target: TargetFacts | None = None, **options: Any
    ) -> dict[str, Any]:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        draft = DraftSection(config=path, vocab_size=vocab_size)
        return Eagle3(Eagle3Config(**options)).draft_config(target or facts(), draft)

    def test_a_derived_config_reads_back_as_it_was(self, path: Path) -> None:
        for options in ({}, {"preset": "eagle3.1", "layers": (1, 5)}, {"num_layers": 2}):
            config = derived(vocab_size=20, **options)
            assert self.read(path, config, **options) == config

    def test_what_the_file_leaves_out_is_filled_in(self, path: Path) -> None:
        config = self.read(path, {**MINIMAL, "note": "mine"}, vocab_size=20)
        # Head sizes follow from the file, not from the target.
        own = {**MINIMAL, "note": "mine", "head_dim": 4, "num_key_value_heads": 8, "draft_vocab_size": 20}
        assert {key: config[key] for key in own} == own
        assert {**derived(vocab_size=20), **own} == config

    def test_a_draft_of_the_files_shape_can_be_built(self, path: Path) -> None:
        algorithm = Eagle3(Eagle3Config())
        draft = algorithm.build_draft(self.read(path, MINIMAL), MatrixTarget(), None)
        assert draft.layers[0].mlp.up_proj.weight.shape == (40, 32)

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({}, {"rope_type": "default", "rope_theta": 10000.0}),
            ({"rope_theta": 5e5}, {"rope_type": "default", "rope_theta": 5e5}),
            (
                {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
                {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0},
            ),
            (
                {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
                {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
            ),
            ({"rope_theta": 5e5, "rope_scaling": None}, {"rope_type": "default", "rope_theta": 5e5}),
            (
                {"rope_parameters": {"rope_type": "default", "rope_theta": 7e4}},
                {"rope_type": "default", "rope_theta": 7e4},
            ),
            (
                {"rope_parameters": {"rope_type": "default"}, "rope_theta": 7e4},
                {"rope_type": "default", "rope_theta": 7e4},
            ),
        ],
    )
    def test_rope_is_the_files_in_the_new_form_or_the_old(self, path: Path, given: Any, expected: Any) -> None:
        config = self.read(path, {**MINIMAL, **given})
        assert config["rope_parameters"] == expected
        assert config["rope_theta"] == expected["rope_theta"]

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({}, {"mrope_section": [2, 1, 1]}),
            ({"rope_theta": 5e5}, {"rope_theta": 5e5, "mrope_section": [2, 1, 1]}),
            ({"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}, {"mrope_section": [1, 1, 2]}),
            ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 1]}}, {"mrope_section": [1, 2, 1]}),
            ({"rope_scaling": {"rope_type": "mrope", "mrope_section": [1, 2, 1]}}, {"mrope_section": [1, 2, 1]}),
        ],
    )
    def test_axes_are_the_files_or_else_the_targets(self, path: Path, given: Any, expected: Any) -> None:
        found = self.read(path, {**MINIMAL, "head_dim": 8, **given}, target=image_facts())["rope_parameters"]
        assert found == {"rope_type": "default", "rope_theta": 10000.0, **expected}
        config = self.read(path, {**MINIMAL, "rope_theta": 5e5}, target=image_facts(), positions="temporal")
        assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 5e5}

    def test_axes_that_the_run_or_the_target_has_not_are_refused(self, path: Path) -> None:
        content = {**MINIMAL, "rope_parameters": {"mrope_section": [2, 2]}}
        sentence = r"mrope_section \[2, 2\], and algorithm.positions = \"temporal\" reads one axis of positions; leave"
        with pytest.raises(UserErrors, match=sentence):
            self.read(path, content, target=image_facts(), positions="temporal")
        with pytest.raises(UserErrors, match=r"mrope_section \[2, 2\], the target \[2, 1, 1\]; they need as many axes"):
            self.read(path, content, target=image_facts())

    @pytest.mark.parametrize("key", MINIMAL)
    def test_each_key_without_which_no_draft_can_be_built_is_asked_for(self, path: Path, key: str) -> None:
        with pytest.raises(UserErrors, match=rf"lacks '{key}'$"):
            self.read(path, {k: v for k, v in MINIMAL.items() if k != key})

    @pytest.mark.parametrize(
        ("changes", "options", "sentence"),
        [
            ({"hidden_size": 64}, {}, "has hidden_size 64, the target random has 32; use the target's"),
            ({"vocab_size": 60}, {}, "has vocab_size 60, the target random has 61; use the target's"),
            ({"num_hidden_layers": 2}, {}, r"has num_hidden_layers 2, the run's \[algorithm\] 1; make them agree"),
            ({"norm_output": True}, {}, r"has norm_output True, the run's \[algorithm\] False"),
            ({"fc_norm": False}, {"fc_norm": True}, r"has fc_norm False, the run's \[algorithm\] True"),
            ({"norm_before_residual": True}, {}, r"has norm_before_residual True, the run's \[algorithm\] False"),
            (
                {"eagle_aux_hidden_state_layer_ids": [1, 5, 8]},
                {},
                r"captures layers \[1, 5, 8\], the run \[2, 6, 9\]; set algorithm.layers=\[1, 5, 8\]",
            ),
            ({"draft_vocab_size": 30}, {"vocab_size": 20}, "draft.vocab_size is 20, .* has draft_vocab_size 30"),
            ({"draft_vocab_size": 62}, {}, "has draft_vocab_size 62, the target's vocabulary holds 61"),
            ({"draft_vocab_size": 0}, {}, "has draft_vocab_size 0, the target's vocabulary holds 61"),
            ({"tie_word_embeddings": True}, {}, "has tie_word_embeddings True, the draft takes False alone"),
            ({"hidden_act": "gelu"}, {}, "has hidden_act gelu, the draft takes silu alone"),
        ],
    )
    def test_each_disagreement_is_named_with_both_values(
        self, path: Path, changes: dict[str, Any], options: dict[str, Any], sentence: str
    ) -> None:
        with pytest.raises(UserErrors, match=sentence) as caught:
            self.read(path, {**MINIMAL, **changes}, **options)
        assert len(caught.value.messages) == 1
        assert str(path) in str(caught.value)

    def test_all_disagreements_come_at_once(self, path: Path) -> None:
        wrong = {"hidden_size": 64, "vocab_size": 60, "fc_norm": True, "draft_vocab_size": 100}
        with pytest.raises(UserErrors) as caught:
            self.read(path, wrong, vocab_size=20)
        # Two keys that are missing, three that disagree, and a size that disagrees and is too large besides.
        assert len(caught.value.messages) == 7

    @pytest.mark.parametrize("layers", [[9, 2, 6], [2, 6, 9]])
    def test_captured_layers_are_written_in_ascending_order(self, path: Path, layers: list[int]) -> None:
        config = self.read(path, {**MINIMAL, "eagle_aux_hidden_state_layer_ids": layers})
        assert config["eagle_aux_hidden_state_layer_ids"] == [2, 6, 9]

    def test_a_file_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        draft = DraftSection(config=tmp_path / "none.json")
        with pytest.raises(UserError, match=r"^draft.config: cannot read .*none.json: No such file"):
            Eagle3(Eagle3Config()).draft_config(facts(), draft)

    @pytest.mark.parametrize("content", ["{", "", "vocab_size: 61"])
    def test_a_file_that_is_not_json_is_named(self, path: Path, content: str) -> None:
        with pytest.raises(UserError, match=r"^draft.config: .*draft.json is not JSON: "):
            self.read(path, content)

    def test_bytes_that_are_not_text_are_not_json(self, path: Path) -> None:
        path.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(UserError, match="is not JSON"):
            Eagle3(Eagle3Config()).draft_config(facts(), DraftSection(config=path))

    @pytest.mark.parametrize(("content", "kind"), [("[1]", "list"), ("3", "int")])
    def test_json_that_is_not_an_object_is_refused(self, path: Path, content: str, kind: str) -> None:
        with pytest.raises(UserError, match=f"draft.json holds {kind}, not an object$"):
            self.read(path, content)
