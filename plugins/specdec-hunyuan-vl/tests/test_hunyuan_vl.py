"""What is special about the family, and what is said when a target cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_hunyuan_vl import FOUR_AXES, THREE_AXES, save

from specdec_core.capture.features import CapturePlan
from specdec_core.config.run import TargetSection
from specdec_core.data.batch import Batch, concatenated
from specdec_core.data.media import LoadedMedium
from specdec_core.errors import UserError
from specdec_core.target.base import TargetFacts
from specdec_core.testing.scenes import pictures
from specdec_hunyuan_vl.backbone import HunyuanVLBackbone, plain_rope
from specdec_hunyuan_vl.config import HunyuanVLConfig


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("hunyuan_vl")
    save(made, FOUR_AXES)
    return made


def facts_of(directory: Path, **options: Any) -> TargetFacts:
    return HunyuanVLBackbone(HunyuanVLConfig(**options)).facts(TargetSection(path=str(directory)))


def test_facts(directory: Path) -> None:
    facts = facts_of(directory)
    assert (facts.model_type, facts.hidden_size, facts.tie_word_embeddings) == ("hunyuan_vl", 64, True)
    assert facts.rope_parameters == {
        "rope_type": "default",
        "rope_theta": pytest.approx(10000 * 100 ** (16 / 14)),
        "mrope_section": [2, 2, 2, 2],
        "mrope_layout": "doubled",
    }
    assert [facts_of(directory, draft_embeds=which).merged_embeds for which in ("merged", "placeholders")] == [1, 0]


def test_facts_of_a_config_whose_text_keys_stand_at_the_top(directory: Path, tmp_path: Path) -> None:
    """As the published model has them."""
    config = json.loads((directory / "config.json").read_text())
    text = config.pop("text_config")
    del text["model_type"], text["rope_parameters"]
    scaling = {"type": "xdrope", "alpha": 100.0, "factor": 1.0, "xdrope_section": [2, 2, 2, 2]}
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    flat = {**text, **config, "rope_theta": 10000.0, "rope_scaling": scaling}
    (tmp_path / "config.json").write_text(json.dumps(flat))
    found, expected = facts_of(tmp_path), facts_of(directory)
    assert (found.rope_parameters, found.head_dim) == (expected.rope_parameters, expected.head_dim)


def test_a_base_that_is_not_stretched_stays() -> None:
    assert plain_rope(THREE_AXES, 16) == {**THREE_AXES, "mrope_layout": "doubled"}


def test_videos_are_not_read(directory: Path) -> None:
    media = HunyuanVLBackbone(HunyuanVLConfig()).media(TargetSection(path=str(directory)))
    assert dict(media.markers) == {"image": "<image>"}


def test_sizes_of_images_can_be_chosen(directory: Path) -> None:
    image = LoadedMedium("image", (Image.new("RGB", (64, 32)),))
    counts = [
        HunyuanVLBackbone(HunyuanVLConfig(max_pixels=pixels))
        .media(TargetSection(path=str(directory)))
        .process([image])
        .replacements[0]
        .count("<image>")
        for pixels in (2048, 512)
    ]
    # Rows of h patches by w + 1, the start and the end.
    assert counts == [4 * (8 + 1) + 2, 2 * (4 + 1) + 2]


def test_eager_attention_computes_the_same(directory: Path) -> None:
    """Documents of a row are kept apart by a mask; the model takes no positions of slots beside those of its axes."""
    backbone = HunyuanVLBackbone(HunyuanVLConfig())
    quick, eager = (
        backbone.load(TargetSection(path=str(directory), attention=attention), "cpu") for attention in ("sdpa", "eager")
    )
    media = backbone.media(TargetSection(path=str(directory)))
    parts = [media.process([*pictures([(16, 24)], seed)]) for seed in (1, 2)]
    ids = [torch.tensor(quick.tokenizer(f"the <img>{part.replacements[0]}</img> apple")["input_ids"]) for part in parts]
    positions = [media.positions(own, part.inputs) for own, part in zip(ids, parts, strict=True)]
    row = torch.cat(ids)[None]
    documents = torch.cat([torch.full_like(own, number) for number, own in enumerate(ids)])[None]
    extras = concatenated(part.inputs for part in parts)
    batch = Batch(row, torch.cat(positions, dim=1)[:, None], row >= 0, documents, extras=extras)
    plan = CapturePlan((1, 4), last_hidden=True)
    for found, expected in zip(eager.capture(batch, plan).tensors(), quick.capture(batch, plan).tensors(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_another_family_is_refused(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError) as caught:
        facts_of(tmp_path)
    assert str(caught.value) == (
        f"target.path = {str(tmp_path)!r}: backbone hunyuan-vl serves models of type hunyuan_vl, "
        "and this one is of type llama; choose another backbone"
    )
