"""The algorithm that a config names, made with its options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specdec_core.algorithm.base import TrainedAlgorithm, TrainingFreeAlgorithm
from specdec_core.errors import NothingToTrain, UserError

if TYPE_CHECKING:
    from specdec_core.registry.resolve import ResolvedPlugin


def load_algorithm(plugin: ResolvedPlugin) -> TrainedAlgorithm | TrainingFreeAlgorithm:
    """Raises UserError if the plugin's class cannot be imported or is no algorithm."""
    algorithm = plugin.load()
    if not isinstance(algorithm, TrainedAlgorithm | TrainingFreeAlgorithm):
        raise UserError(
            f"{plugin.spec.implementation} of {plugin.source} is neither a TrainedAlgorithm nor a "
            "TrainingFreeAlgorithm; this is a fault of that plugin"
        )
    return algorithm


def load_trained(plugin: ResolvedPlugin) -> TrainedAlgorithm:
    """The same. Raises NothingToTrain if the algorithm is one without training."""
    algorithm = load_algorithm(plugin)
    if isinstance(algorithm, TrainingFreeAlgorithm):
        raise NothingToTrain(f'algorithm "{plugin.spec.name}" has nothing to train; measure it as it is')
    return algorithm
