"""The `[algorithm]` options of EAGLE-3, and the presets that set several of them at once."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from specdec_core.config.presets import PresetOptions

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"steps": 7, "step_decay": 0.8},
    "eagle3.1": {"fc_norm": True, "norm_output": True},
    "specforge": {
        "steps": 7,
        "step_decay": 0.8,
        "mask": "specforge",
        "filter_teacher": True,
        "reduction": "slot",
    },
    "speculators": {
        "steps": 3,
        "step_decay": 1.0,
        "mask": "speculators",
        "objective": "kl",
        "head": "frozen",
        "norm_before_residual": True,
    },
}


class Eagle3Config(PresetOptions):
    """EAGLE-3 (arXiv 2503.01840). A preset fills in the keys that are not given."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    presets: ClassVar = PRESETS

    preset: Literal["default", "paper", "eagle3.1", "specforge", "speculators"] = Field(
        "default", description="Named sets of the options below; options given besides it win."
    )
    steps: Annotated[int, Field(ge=1, le=32)] = Field(7, description="Training-time-test steps.")
    step_decay: Annotated[float, Field(gt=0, le=1)] = Field(0.8, description="Step k weighs step_decay^k.")
    layers: tuple[int, ...] | None = Field(
        None, description="Captured layer ids (input of layer k). None: 2, L//2 and L-3 of a target of L >= 8 layers."
    )
    positions: Literal["target", "temporal", "sequential"] = Field(
        "target",
        description="What the draft rotates by where the target has several axes of positions: all of them, the first, "
        "or each slot's index in its conversation.",
    )
    num_layers: Literal[1, 2] = Field(1, description="Decoder layers of the draft. Engines serve one.")
    fc_norm: bool = Field(False, description="EAGLE-3.1: RMSNorm on each captured state before fc.")
    norm_output: bool = Field(False, description="EAGLE-3.1: feed the normed output back to the next step.")
    norm_before_residual: bool = Field(False, description="The residual is the normed state.")
    head: Literal["trained", "frozen"] = Field("trained", description="Whether the draft's head learns.")
    mask: Literal["strict", "specforge", "speculators"] = Field(
        "strict",
        description="Slots supervised at step k: strict asks m[t+1..t+2+k], speculators m[t+1+k], specforge m[t+k].",
    )
    filter_teacher: bool = Field(False, description="Leave out slots whose teacher's top token the draft cannot say.")
    objective: Literal["cross_entropy", "kl"] = Field(
        "cross_entropy", description="kl subtracts the teacher's entropy: another figure, the same gradient."
    )
    reduction: Literal["token", "sequence", "slot"] = Field(
        "token", description="Mean over supervised tokens, over sequences of their token means, or over all slots."
    )
    regression: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Weight of a smooth-L1 loss that pulls the draft's normed state to the target's last state."
    )
    fc_lr_scale: Annotated[float, Field(ge=0)] = Field(
        1.0, description="fc's learning rate over train.lr. Its inputs hold huge coordinates: a fitted fc wants little."
    )
    init_layer: int | None = Field(None, description="Target layer that draft.init = 'target' copies. None: the last.")
    min_confidence: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="When decoding, draft no further once the drafted tokens' probabilities multiply to less. "
        "0 always drafts all k, without waiting for the device after each.",
    )
    implementation: Literal["fast", "plain"] = Field("fast", description="plain is the readable twin, slow.")
    recompute: bool = Field(False, description="Recompute activations in the backward: less memory, more time.")

    @property
    def step_weights(self) -> list[float]:
        """[K] weight of each step's loss."""
        return [self.step_decay**k for k in range(self.steps)]
