"""The types of what a draft JSON says of the draft's shape. Whether it fits the target is `draft_config`'s affair."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from specdec_core.errors import UserError

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class DraftJson(BaseModel):
    """Keys that the draft is built from; a key may be missing here. Other keys are kept as they are."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    hidden_size: Count = 1
    intermediate_size: Count = 1
    num_attention_heads: Count = 1
    num_key_value_heads: Count = 1
    head_dim: Count = 1
    vocab_size: Count = 1
    draft_vocab_size: int = 1
    max_position_embeddings: Count = 1
    rms_norm_eps: Positive = 1.0
    rope_theta: Positive = 1.0
    rope_parameters: dict[str, Any] = {}
    rope_scaling: dict[str, Any] = {}
    attention_bias: bool = False
    mlp_bias: bool = False
    eagle_aux_hidden_state_layer_ids: list[int] = []


def check_heads(path: Path, config: dict[str, Any]) -> None:
    """Raises UserError if attention cannot be made of these heads."""
    heads, groups, dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    if heads % groups:
        raise UserError(
            f"draft.config: {path} has {heads} attention heads, which {groups} key-value heads cannot share evenly"
        )
    if dim < 2 or dim % 2:
        raise UserError(f"draft.config: {path} gives head_dim {dim}; rotary embedding needs an even one")
