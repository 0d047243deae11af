"""The `[algorithm]` options of Medusa, and the presets that set several of them at once."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from specdec_core.config.presets import PresetOptions
from specdec_medusa.trees import Choices, check_choices

_PAPER = {"heads": 5, "layers": 1, "decay": 0.8, "loss": "tokens", "mask": "predicted", "lr": 1e-3}
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "medusa-1": _PAPER,
    "medusa-2": {**_PAPER, "train_target": True},
}

Share = Annotated[float, Field(gt=0, lt=1)]


class MedusaConfig(PresetOptions):
    """Medusa (arXiv 2401.10774). A preset fills in the keys that are not given."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    presets: ClassVar = PRESETS

    preset: Literal["default", "medusa-1", "medusa-2"] = Field(
        "default", description="Named sets of the options below; options given besides it win."
    )
    heads: Annotated[int, Field(ge=1, le=32)] = Field(4, description="Heads; head i predicts the token 2 + i ahead.")
    layers: Annotated[int, Field(ge=1, le=8)] = Field(1, description="Residual layers of each head.")
    decay: Annotated[float, Field(gt=0, le=1)] = Field(0.8, description="Head i weighs decay^(i + 1) in the loss.")
    loss: Literal["tokens", "target"] = Field(
        "tokens", description="Cross-entropy against the data's tokens, or against the target's distribution there."
    )
    mask: Literal["strict", "predicted"] = Field(
        "strict",
        description="Slots supervised for head i: strict asks m[t+1..t+2+i], predicted m[t+2+i] alone.",
    )
    lr: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Peak learning rate of the heads. Not set: train.lr."
    )
    train_target: bool = Field(
        False, description="Medusa-2: the target learns too, and the loss is its own + heads_weight * the heads'."
    )
    target_lr: Annotated[float, Field(gt=0)] = Field(
        1e-5, description="Peak learning rate of the target that learns; that of the heads is lr."
    )
    # This and heads_first: the authors' training files, as quoted in github.com/FasterDecoding/Medusa, issue 85.
    heads_weight: Annotated[float, Field(gt=0)] = Field(
        0.2, description="Weight of the heads' loss beside that of a target that learns."
    )
    heads_first: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.5, description="Share of the steps, the first, in which the heads learn and not the target."
    )
    tree: Literal["chain"] | Annotated[int, Field(ge=1, le=512, strict=True)] | Choices = Field(
        "chain",
        description="What is drafted: each head's top token (chain), the best tree of so many nodes, or a tree as a "
        "list of paths, such as [[0], [1], [0, 0]]: a path's numbers are ranks, one for each head from the first.",
    )
    tree_accuracy: tuple[Share, ...] | None = Field(
        None,
        description="Top-1 accuracies of the heads (accuracy/1, ...) by which a tree of so many nodes is made. "
        "None: 0.5 for the first head, each further one 0.8 of it.",
    )
    implementation: Literal["fast", "plain"] = Field("fast", description="plain is the readable twin, slow.")

    @field_validator("target_lr", "heads_weight", "heads_first", mode="after")
    @classmethod
    def _is_of_a_target_that_learns(cls, value: float, info: ValidationInfo) -> float:
        # A run's own config names every key, those without effect with their defaults.
        unset = value == cls.model_fields[str(info.field_name)].default
        if not (unset or info.data.get("train_target", True)):
            raise ValueError("only a target that learns has it; set train_target = true")
        return value

    @field_validator("tree", mode="after")
    @classmethod
    def _paths_make_a_tree(cls, tree: Any, info: ValidationInfo) -> Any:
        if isinstance(tree, tuple) and "heads" in info.data:
            check_choices(tree, info.data["heads"])
        return tree

    @field_validator("tree_accuracy", mode="after")
    @classmethod
    def _one_accuracy_for_each_head(
        cls, value: tuple[float, ...] | None, info: ValidationInfo
    ) -> tuple[float, ...] | None:
        if value is not None and len(value) != info.data.get("heads", len(value)):
            raise ValueError(f"there are {info.data['heads']} heads, and an accuracy for each is needed")
        return value

    @property
    def head_weights(self) -> list[float]:
        """[K] weight of each head's loss (section 2.2.1)."""
        return [self.decay ** (head + 1) for head in range(self.heads)]

    @property
    def accuracies(self) -> tuple[float, ...]:
        """[K] top-1 accuracy of each head, as far as trees are concerned."""
        return self.tree_accuracy or tuple(0.5 * 0.8**head for head in range(self.heads))
