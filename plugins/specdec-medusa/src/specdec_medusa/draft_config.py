"""The draft's HF-style config: derived from the target, or read from a JSON file and checked against it.

The keys are those that engines read. They take any other key with "num" and "heads" or "layers" in it for the number
of heads or of residual layers, so that no such key is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from specdec_core.algorithm.draft_json import (
    algorithm_problems,
    draft_vocab_size,
    read_draft_json,
    target_problems,
    vocab_problems,
)
from specdec_core.config.run import DraftSection
from specdec_core.errors import UserErrors
from specdec_core.target.base import TargetFacts
from specdec_medusa.config import MedusaConfig

# How the authors' own checkpoints name two of the keys.
_OTHER_NAMES = {"medusa_num_heads": "num_heads", "medusa_num_layers": "num_hidden_layers"}

Count = Annotated[int, Field(ge=1)]


class MedusaJson(BaseModel):
    """Keys that the draft is built from; a key may be missing here. Other keys are kept as they are."""

    model_config = ConfigDict(extra="ignore", strict=True)

    hidden_size: Count = 1
    vocab_size: Count = 1
    draft_vocab_size: int = 1
    num_heads: Count = 1
    num_hidden_layers: Count = 1
    medusa_num_heads: Count = 1
    medusa_num_layers: Count = 1
    medusa_fc_bias: bool = True


def derive(options: MedusaConfig, facts: TargetFacts, draft: DraftSection) -> dict[str, Any]:
    """The config of the draft that `options` describe, for this target."""
    return {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "hidden_size": facts.hidden_size,
        "vocab_size": facts.vocab_size,
        "draft_vocab_size": draft_vocab_size(facts, draft),
        "num_heads": options.heads,
        "num_hidden_layers": options.layers,
        "medusa_fc_bias": True,
    }


def read(path: Path, options: MedusaConfig, facts: TargetFacts, draft: DraftSection) -> dict[str, Any]:
    """A draft JSON, checked against the target and the run config; every disagreement is reported at once."""
    loaded = read_draft_json(path, MedusaJson)
    loaded = {_OTHER_NAMES.get(key, key): value for key, value in loaded.items()}
    derived = derive(options, facts, draft)
    problems = target_problems(path, loaded, facts)
    problems += algorithm_problems(path, loaded, {key: derived[key] for key in _OTHER_NAMES.values()})
    problems += vocab_problems(path, loaded, facts, draft)
    if loaded.get("medusa_fc_bias") is False:
        problems.append(
            f"draft.config: {path} has medusa_fc_bias false, the draft's layers have biases; set it to true"
        )
    for key in loaded.keys() - derived.keys():
        if "num" in key and ("heads" in key or "layers" in key):
            problems.append(
                f"draft.config: {path} has {key}, which engines would take for the number of heads or of residual "
                "layers; leave it out"
            )
    if problems:
        raise UserErrors(problems)
    return {**derived, **loaded}
