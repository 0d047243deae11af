"""Which checkpoint is the best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# The first of these that is known decides; the training metrics are means since the checkpoint before.
LOWER_IS_BETTER = {"validation/loss": True, "acceptance_length": False, "loss": True}


@dataclass(frozen=True)
class Score:
    """One metric of the checkpoint of one step."""

    step: int
    metric: str
    value: float

    @classmethod
    def of(cls, metrics: Mapping[str, float], step: int) -> Score | None:
        """The score that these metrics give, if they give one."""
        return next((cls(step, name, metrics[name]) for name in LOWER_IS_BETTER if name in metrics), None)

    def beats(self, other: Score | None) -> bool:
        """Whether this one is better; scores of another metric say nothing and lose."""
        if other is None or other.metric != self.metric:
            return True
        return self.value < other.value if LOWER_IS_BETTER[self.metric] else self.value > other.value
