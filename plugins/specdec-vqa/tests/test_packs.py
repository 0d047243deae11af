"""The packs: easy-vqa from a package of its shape, hub-vqa from datasets that `datasets` itself saved."""

from __future__ import annotations

import json
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from specdec_core.errors import UserError
from specdec_core.evaluate.prompts import Prompt
from specdec_core.registry.registry import Registry
from specdec_vqa.config import PRESETS, EasyVqaConfig, HubVqaConfig
from specdec_vqa.easy import EasyVqaPrompts
from specdec_vqa.hub import HubVqaPrompts


def picture(seed: int, size: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def parts(prompt: Prompt) -> list[dict[str, str]]:
    """Of its only message."""
    (message,) = prompt.messages
    assert message["role"] == "user"
    return message["content"]


def shown(part: dict[str, str]) -> Image.Image:
    assert part["type"] == "image"
    head, _, data = part["image"].partition(",")
    assert head == "data:;base64"
    return Image.open(BytesIO(b64decode(data)))


def kinds(prompt: Prompt) -> list[str]:
    """The text of each part, or "image" and the number by which the picture was made."""
    known = {picture(seed).tobytes(): seed for seed in range(20)}
    return [
        part["text"] if part["type"] == "text" else f"image {known[shown(part).tobytes()]}" for part in parts(prompt)
    ]


def saved(path: Path, rows: dict[str, list[Any]], images: tuple[str, ...] = ("image",), **lists: Any) -> str:
    dataset = datasets.Dataset.from_dict(rows)
    for name in images:
        dataset = dataset.cast_column(name, datasets.Image())
    for name in lists:
        dataset = dataset.cast_column(name, datasets.List(datasets.Image()))
    dataset.save_to_disk(path)
    return str(path)


def read(dataset: str, **options: Any) -> list[Prompt]:
    return [*HubVqaPrompts(HubVqaConfig(dataset=dataset, **options))]


class TestHub:
    def test_rows_of_textvqa(self, tmp_path: Path) -> None:
        rows = {
            "question_id": [34602, 34603],
            "question": ["what is the brand?", "what does it say?"],
            "image": [picture(1), picture(2)],
            "answers": [["nous", "nous"], ["stop", "stop"]],
        }
        prompts = read(saved(tmp_path / "a", rows), preset="textvqa")
        assert [(p.id, p.category) for p in prompts] == [("34602", "textvqa"), ("34603", "textvqa")]
        assert [kinds(p) for p in prompts] == [["image 1", "what is the brand?"], ["image 2", "what does it say?"]]
        assert prompts[0].text == "what is the brand?"

    def test_rows_of_mmmu_with_images_in_the_text_and_choices(self, tmp_path: Path) -> None:
        empty: dict[str, list[Any]] = {f"image_{number}": [None] * 2 for number in range(3, 8)}
        rows = {
            "id": ["validation_Art_1", "validation_Art_2"],
            "question": ["Compare <image 2> to <image 1>: <image 2> is", "Which?"],
            "options": ["['older', '<image 3>']", "[]"],
            "image_1": [picture(1), picture(4)],
            "image_2": [picture(2), picture(5)],
            **empty,
            "image_3": [picture(3), None],
        }
        path = saved(tmp_path / "a", rows, tuple(f"image_{number}" for number in range(1, 8)))
        one, two = read(path, preset="mmmu", subset="Art")
        assert kinds(one) == ["Compare ", "image 2", " to ", "image 1", ": <image 2> is\nA. older\nB. ", "image 3"]
        assert kinds(two) == ["image 4", "image 5", "Which?"]
        assert one.id == "validation_Art_1"

    def test_rows_of_mmstar_and_of_pages_without_questions(self, tmp_path: Path) -> None:
        rows = {"index": [7], "question": ["Which?\nOptions: A: cat, B: dog"], "image": [picture(1)]}
        (star,) = read(saved(tmp_path / "a", rows), preset="mmstar")
        assert (star.id, kinds(star)) == ("7", ["image 1", "Which?\nOptions: A: cat, B: dog"])
        (page,) = read(saved(tmp_path / "b", {"image": [picture(2)]}), preset="omnidocbench")
        assert (page.id, kinds(page)) == ("0", ["image 2", PRESETS["omnidocbench"]["template"]])

    def test_lists_of_images_and_columns_of_paths(self, tmp_path: Path) -> None:
        rows = {"question": ["a?"], "pictures": [[picture(1), picture(2)]], "link": ["https://x.org/y.png"]}
        path = saved(tmp_path / "a", rows, (), pictures=True)
        (prompt,) = read(path, images=("pictures", "link"))
        *two, link, text = parts(prompt)
        assert [shown(part).tobytes() for part in two] == [picture(1).tobytes(), picture(2).tobytes()]
        assert (link["image"], text["text"]) == ("https://x.org/y.png", "a?")

    def test_bytes_are_those_of_the_dataset(self, tmp_path: Path) -> None:
        buffer = BytesIO()
        picture(3).save(buffer, "JPEG")
        rows = {"question": ["a?"], "image": [{"bytes": buffer.getvalue(), "path": None}]}
        (prompt,) = read(saved(tmp_path / "a", rows))
        assert b64decode(parts(prompt)[0]["image"].partition(",")[2]) == buffer.getvalue()

    def test_split_of_several_and_limit_and_template(self, tmp_path: Path) -> None:
        rows = {"question": [f"{n}?" for n in range(10)], "image": [picture(n) for n in range(10)]}
        dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        datasets.DatasetDict({"val": dataset}).save_to_disk(tmp_path / "both")
        options = {"split": "val", "limit": 3, "template": "{prompt} Say why.", "category": "c"}
        prompts = read(str(tmp_path / "both"), **options)
        assert [kinds(p) for p in prompts] == [[f"image {n}", f"{n}? Say why."] for n in (0, 3, 6)]
        assert {p.category for p in prompts} == {"c"}
        assert len(read(str(tmp_path / "both"), split="val", limit=None)) == 10

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"split": "train"}, r"^prompts hub-vqa: cannot load .*both: 'train'"),
            ({"question": "ask"}, r'has no column "ask" but question, image, options; name the columns with the opt'),
            ({"images": ("image", "picture")}, r'has no column "picture" but'),
            ({"choices": "options"}, r"the choices of row 0 of .* are no list: \[oops"),
        ],
    )
    def test_what_is_not_there_is_said(self, tmp_path: Path, options: dict[str, Any], message: str) -> None:
        rows = {"question": ["a?"], "image": [picture(1)], "options": ["[oops"]}
        dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        datasets.DatasetDict({"val": dataset}).save_to_disk(tmp_path / "both")
        with pytest.raises(UserError, match=message):
            read(str(tmp_path / "both"), **{"split": "val", **options})

    def test_a_row_without_an_image_is_named(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "a", {"question": ["a?", "b?"], "image": [picture(1), None]})
        with pytest.raises(UserError, match=r"^prompts hub-vqa: row 1 of .* holds no image; leave it out$"):
            read(path)

    def test_a_dataset_that_cannot_be_had_is_one_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(UserError, match=r"^prompts hub-vqa: cannot load no-such/dataset: [^\n]+$"):
            read("no-such/dataset")

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"dataset": ""},
            {"dataset": "a/b", "images": ()},
            {"dataset": "a/b", "limit": 0},
            {"dataset": "a/b", "template": "no place"},
            {"dataset": "a/b", "question": None},
            {"preset": "imagenet"},
        ],
    )
    def test_bad_options(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            HubVqaConfig(**options)

    def test_presets_are_overridden_by_what_is_given(self) -> None:
        for name in PRESETS:
            assert HubVqaConfig(preset=name, split="x").split == "x"  # type: ignore[arg-type, call-arg]


class TestEasy:
    @pytest.fixture
    def package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A package of easy-vqa's shape."""
        package = tmp_path / "easy_vqa"
        (package / "data" / "test" / "images").mkdir(parents=True)
        (package / "__init__.py").touch()
        questions = [["what is it?", "circle", 1], ["is it red?", "no", 1], ["is it blue?", "yes", 0]]
        (package / "data" / "test" / "questions.json").write_text(json.dumps(questions))
        for number in range(2):
            picture(number).save(package / "data" / "test" / "images" / f"{number}.png")
        monkeypatch.syspath_prepend(tmp_path)
        return package

    def test_each_question_is_shown_after_its_image(self, package: Path) -> None:
        prompts = [*EasyVqaPrompts(EasyVqaConfig(template="{prompt} Explain."))]
        assert [(p.id, p.category) for p in prompts] == [("0", "easy-vqa"), ("1", "easy-vqa"), ("2", "easy-vqa")]
        image, text = parts(prompts[2])
        assert text["text"] == "is it blue? Explain."
        with Image.open(prompts[2].directory / image["image"]) as found:
            assert found.tobytes() == picture(0).tobytes()
        assert [p.id for p in EasyVqaPrompts(EasyVqaConfig(limit=2))] == ["0", "1"]

    def test_a_package_that_is_not_there_or_not_whole_is_said(
        self, package: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(UserError, match=r"cannot read .*train/questions.json: No such file"):
            next(iter(EasyVqaPrompts(EasyVqaConfig(split="train"))))
        monkeypatch.setattr("specdec_core.packages.find_spec", lambda _: None)
        with pytest.raises(UserError, match=r'^prompts easy-vqa: the package is not installed; pip install "specdec-'):
            next(iter(EasyVqaPrompts(EasyVqaConfig())))

    def test_the_real_package(self) -> None:
        pytest.importorskip("easy_vqa")
        prompts = [*EasyVqaPrompts(EasyVqaConfig(limit=50))]
        assert len(prompts) == 50
        for prompt in prompts:
            with Image.open(prompt.directory / parts(prompt)[0]["image"]) as image:
                assert image.size == (64, 64)


def test_both_are_found_by_their_names() -> None:
    registry = Registry.discover()
    assert {registry.find("prompts", name).distribution for name in ("easy-vqa", "hub-vqa")} == {"specdec-vqa"}
