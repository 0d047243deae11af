"""What is special about the families, and what is said when a target cannot be used."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from pydantic import ValidationError
from tiny_qwen_vl import config_of, save

from specdec_core.capture.features import CapturePlan
from specdec_core.config.run import TargetSection
from specdec_core.data.batch import Batch, concatenated
from specdec_core.data.conversations import LineError
from specdec_core.data.media import LoadedMedium
from specdec_core.errors import UserError
from specdec_core.target.hf_vision import HFVisionTarget
from specdec_core.testing.scenes import pictures
from specdec_qwen_vl.backbone import QwenVLBackbone
from specdec_qwen_vl.config import QwenVLConfig

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
PLAN = CapturePlan((0, 2), last_hidden=True, embeds=True)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    for family, directory in made.items():
        save(family, directory)
    return made


def section(path: Path, **values: Any) -> TargetSection:
    return TargetSection(path=str(path), **values)


def backbone(**options: Any) -> QwenVLBackbone:
    return QwenVLBackbone(QwenVLConfig(**options))


def copy(directory: Path, to: Path) -> None:
    """All that belongs to a target but its weights, to be spoiled."""
    shutil.copytree(directory, to, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)


def load(directory: Path, **values: Any) -> HFVisionTarget:
    target = backbone().load(section(directory, **values), "cpu")
    assert isinstance(target, HFVisionTarget)
    return target


def row_of(target: HFVisionTarget, *seeds: int) -> Batch:
    """One row of a document with an image for each seed."""
    ids, positions, documents, extras = [], [], [], []
    for number, seed in enumerate(seeds):
        processed = target.media.process([*pictures([(16, 24)], seed)])
        text = f"the <|vision_start|>{processed.replacements[0]}<|vision_end|> red apple"
        ids.append(torch.tensor(target.tokenizer(text)["input_ids"]))
        positions.append(target.media.positions(ids[-1], processed.inputs))
        documents.append(torch.full_like(ids[-1], number))
        extras.append(processed.inputs)
    row = torch.cat(ids)[None]
    return Batch(
        row, torch.cat(positions, 1)[:, None], row >= 0, torch.cat(documents)[None], extras=concatenated(extras)
    )


class TestFacts:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_of_each_family(self, directories: dict[str, Path], family: str) -> None:
        facts = backbone().facts(section(directories[family], dtype="bfloat16"))
        assert (facts.model_type, facts.dtype) == (family, "bfloat16")
        assert (facts.hidden_size, facts.head_dim, facts.vocab_size) == (64, 16, 512)
        assert facts.attention_bias == (family in ("qwen2_vl", "qwen2_5_vl"))
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
        assert facts.rope_parameters == (rope | {"mrope_interleaved": True} if "3" in family else rope)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_sections_that_the_config_leaves_out_are_the_models(
        self, directories: dict[str, Path], tmp_path: Path, family: str
    ) -> None:
        config = config_of(family, rope_parameters={"rope_type": "default", "rope_theta": 5e5}, head_dim=128)
        copy(directories[family], tmp_path)
        config.save_pretrained(tmp_path)
        with torch.device("meta"):
            own = transformers.AutoModel.from_config(config).language_model.rotary_emb.mrope_section
        assert backbone().facts(section(tmp_path)).rope_parameters["mrope_section"] == own

    def test_as_published_models_write_them(self, directories: dict[str, Path], tmp_path: Path) -> None:
        """The text's keys beside those of the whole, `rope_scaling` of the type mrope, tied heads at the top."""
        config = json.loads((directories["qwen2_5_vl"] / "config.json").read_text())
        text = config.pop("text_config")
        rope = text.pop("rope_parameters")
        flat = {key: value for key, value in text.items() if key not in ("model_type", "layer_types", "dtype")}
        config |= flat | {
            "tie_word_embeddings": True,
            "rope_theta": rope["rope_theta"],
            "rope_scaling": {"type": "mrope", "mrope_section": [4, 2, 2]},
        }
        copy(directories["qwen2_5_vl"], tmp_path)
        (tmp_path / "config.json").write_text(json.dumps(config))
        facts = backbone().facts(section(tmp_path))
        assert facts.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
        assert (facts.hidden_size, facts.num_layers, facts.tie_word_embeddings) == (64, 4, True)

    def test_the_draft_reads_images_or_placeholders(self, directories: dict[str, Path]) -> None:
        found = [
            backbone(draft_embeds=which).facts(section(directories["qwen2_vl"])).merged_embeds
            for which in ("merged", "placeholders")
        ]
        assert found == [True, False]

    def test_a_template_of_the_processor_alone_is_found(self, directories: dict[str, Path], tmp_path: Path) -> None:
        copy(directories["qwen2_vl"], tmp_path)
        template = (tmp_path / "chat_template.jinja").read_text()
        (tmp_path / "chat_template.jinja").unlink()
        (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
        assert backbone().tokenizer(section(tmp_path)).chat_template == template


class TestImages:
    def test_sizes_of_images_can_be_chosen(self, directories: dict[str, Path]) -> None:
        where, image = section(directories["qwen3_vl"]), LoadedMedium("image", (Image.new("RGB", (200, 200)),))

        def tokens(**options: Any) -> int:
            return backbone(**options).media(where).process([image]).replacements[0].count("<|image_pad|>")

        assert (tokens(), tokens(max_pixels=1024), tokens(min_pixels=65536, max_pixels=65536)) == (25, 16, 1024)
        prints = {backbone(**options).media(where).fingerprint for options in ({}, {"max_pixels": 1024})}
        assert len(prints) == 2

    def test_sizes_that_contradict_each_other_are_refused(self, directories: dict[str, Path]) -> None:
        with pytest.raises(ValidationError, match="min_pixels = 9 is more than max_pixels = 8"):
            QwenVLConfig(min_pixels=9, max_pixels=8)
        with pytest.raises(UserError, match=r"at least 4096 pixels and at most 2048; set both"):
            backbone(min_pixels=4096).media(section(directories["qwen2_vl"]))

    def test_an_image_that_the_family_refuses(self, directories: dict[str, Path]) -> None:
        strip = LoadedMedium("image", (Image.new("RGB", (2000, 5)),))
        with pytest.raises(LineError) as caught:
            backbone().media(section(directories["qwen2_vl"])).process([strip])
        assert caught.value.message == (
            "cannot be read by the target: absolute aspect ratio must be smaller than 200, got 400.0"
        )

    @pytest.mark.parametrize("size", [(1, 1), (3, 40), (40, 3), (1, 40)])
    def test_very_small_images(self, directories: dict[str, Path], size: tuple[int, int]) -> None:
        small = LoadedMedium("image", (Image.new("RGB", size, "red"),))
        processed = backbone().media(section(directories["qwen2_vl"])).process([small])
        assert processed.replacements[0].count("<|image_pad|>") * 4 == len(processed.inputs["pixel_values"])

    def test_positions_of_the_largest_model_are_counted_without_its_weights(
        self, directories: dict[str, Path], tmp_path: Path
    ) -> None:
        """Sizes of Qwen2.5-VL-32B: 64 layers of 5,120."""
        sizes = {"hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64, "vocab_size": 152064}
        config = config_of("qwen2_5_vl", **sizes, num_attention_heads=40, num_key_value_heads=8)
        copy(directories["qwen2_5_vl"], tmp_path)
        config.save_pretrained(tmp_path)
        media = backbone().media(section(tmp_path))
        assert media.positions(torch.arange(3, 9), {}).tolist() == [[0, 1, 2, 3, 4, 5]] * 3


class TestTargets:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_eager_attention_computes_the_same(self, directories: dict[str, Path], family: str) -> None:
        """Documents of a row are kept apart by a mask."""
        quick, eager = load(directories[family]), load(directories[family], attention="eager")
        assert (quick.knows_layouts, eager.knows_layouts) == (True, False)
        batch = row_of(quick, 1, 2)
        captures = [each.capture(batch, PLAN).tensors() for each in (eager, quick)]
        for found, expected in zip(*captures, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    def test_positions_of_one_axis_stand_for_all(self, directories: dict[str, Path]) -> None:
        target = load(directories["qwen3_vl"])
        ids = torch.tensor([[5, 9, 4, 7]])
        positions = torch.arange(4)[None]
        one, all_axes = (
            target.capture(Batch(ids, each, ids >= 0, torch.zeros_like(ids)), PLAN)
            for each in (positions, positions.expand(3, 1, 4))
        )
        for found, expected in zip(one.tensors(), all_axes.tensors(), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)

    def test_a_saved_target_loads_again(self, directories: dict[str, Path], tmp_path: Path) -> None:
        target = load(directories["qwen2_5_vl"])
        backbone().save(target, tmp_path)
        again = load(tmp_path)
        batch = row_of(again, 3)
        for found, expected in zip(
            again.capture(batch, PLAN).tensors(), target.capture(batch, PLAN).tensors(), strict=True
        ):
            assert torch.equal(found, expected)
        assert backbone().module(target) is target.model

    def test_nothing_is_printed(self, directories: dict[str, Path]) -> None:
        code = (
            "from specdec_qwen_vl.backbone import *; from specdec_qwen_vl.config import *;"
            f"b, t = QwenVLBackbone(QwenVLConfig()), TargetSection(path={str(directories['qwen2_vl'])!r});"
            "b.load(t, 'cpu').media.positions(__import__('torch').arange(3), {})"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("", "")


class TestRefusals:
    def test_another_family(self, tmp_path: Path) -> None:
        transformers.LlamaConfig(vocab_size=512).save_pretrained(tmp_path)
        with pytest.raises(UserError) as caught:
            backbone().load(section(tmp_path), "cpu")
        assert str(caught.value) == (
            f"target.path = {str(tmp_path)!r}: backbone qwen-vl serves models of type qwen2_vl, qwen2_5_vl, qwen3_vl, "
            "qwen3_vl_moe, and this one is of type llama; choose another backbone"
        )

    def test_an_attention_that_could_not_keep_documents_apart(
        self, directories: dict[str, Path], tmp_path: Path
    ) -> None:
        for family, attention in (("qwen3_vl", "flash_attention_2"), ("qwen2_vl", "quick")):
            with pytest.raises(UserError) as caught:
                load(directories[family], attention=attention)
            assert str(caught.value) == (
                f"target.attention = {attention!r}: backbone qwen-vl serves this target with sdpa or eager only"
            )
        copy(directories["qwen2_vl"], tmp_path)
        windows = ["sliding_attention", "full_attention"] * 2
        config_of("qwen2_vl", use_sliding_window=True, sliding_window=8, layer_types=windows).save_pretrained(tmp_path)
        with pytest.raises(UserError, match=r"'eager': backbone qwen-vl serves this target with sdpa only"):
            load(tmp_path, attention="eager")

    def test_a_directory_without_a_processor(self, directories: dict[str, Path], tmp_path: Path) -> None:
        copy(directories["qwen2_vl"], tmp_path)
        (tmp_path / "processor_config.json").unlink()
        with pytest.raises(UserError) as caught:
            backbone().media(section(tmp_path))
        assert "\n" not in str(caught.value)
        assert "cannot be loaded: Can't load image processor" in str(caught.value)

    def test_a_file_for_a_directory(self, directories: dict[str, Path]) -> None:
        with pytest.raises(UserError, match=r"expected a model directory, which holds a config.json"):
            backbone().facts(section(directories["qwen2_vl"] / "config.json"))
