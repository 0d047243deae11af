"""Options of the packs of questions about images."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

PLACEHOLDER = "{prompt}"
TEMPLATE = Field(PLACEHOLDER, description="Text around the question, which stands where it says {prompt}.")

# Column names as their dataset cards give them.
PRESETS: dict[str, dict[str, Any]] = {
    "textvqa": {"dataset": "lmms-lab/textvqa", "split": "validation", "id": "question_id"},
    "mmmu": {
        "dataset": "MMMU/MMMU",
        "split": "validation",
        "id": "id",
        "images": tuple(f"image_{number}" for number in range(1, 8)),
        "choices": "options",
    },
    "mmstar": {"dataset": "Lin-Chen/MMStar", "split": "val", "id": "index"},
    "omnidocbench": {
        "dataset": "opendatalab/OmniDocBench",
        "split": "train",
        "question": None,
        "template": "Write down this page as Markdown.",
    },
}


class EasyVqaConfig(BaseModel):
    """Which questions of the package easy-vqa to read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: Literal["train", "test"] = Field("test", description="train has 4,000 images, test has 1,000 others.")
    limit: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Take this many questions, spread evenly over the file. None takes all."
    )
    template: str = TEMPLATE
    category: str = Field("easy-vqa", description="What the report calls these prompts.")


class HubVqaConfig(BaseModel):
    """A dataset of questions about images. A preset fills in the keys that are not given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Literal["textvqa", "mmmu", "mmstar", "omnidocbench"] | None = Field(
        None, description="The keys below for a known dataset; those given besides it win."
    )
    dataset: str = Field(
        min_length=1, description="A Hub id such as org/name, or a directory that datasets' save_to_disk wrote."
    )
    subset: str | None = Field(None, description="The dataset's configuration, where it has several.")
    split: str = Field("test", description="The split.")
    revision: str | None = Field(None, description="Branch, tag or commit of a Hub id.")
    question: str | None = Field("question", description="Column of the question. None: the template is the question.")
    images: tuple[str, ...] = Field(
        ("image",), description="Columns of images; one may be empty, or hold a list of images."
    )
    choices: str | None = Field(None, description="Column of the answers to choose from, added as lines A., B., …")
    id: str | None = Field(None, description="Column of the question's id. None: its number.")
    template: str = TEMPLATE
    category: str | None = Field(
        None, description="What the report calls these prompts. None: the preset, or else the dataset's name."
    )
    limit: Annotated[int, Field(ge=1)] | None = Field(
        100,
        description="Take this many questions, spread evenly. None takes all; their images are held in memory.",
    )

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, values: Any) -> Any:
        if isinstance(values, dict):
            return {**PRESETS.get(str(values.get("preset")), {}), **values}
        return values

    @field_validator("images")
    @classmethod
    def _shows_something(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("names no column; these prompts are about images")
        return value

    @model_validator(mode="after")
    def _asks_something(self) -> HubVqaConfig:
        if (self.question is None) == (PLACEHOLDER in self.template):
            raise ValueError(f"template must say {PLACEHOLDER} where the column of the question goes, if there is one")
        return self
