"""Which differences between two plugin locks change what a draft learns or does."""

from __future__ import annotations

from specdec_core.registry.lock import Lock, compare_lock

ESSENTIAL = ("backbone", "algorithm", "engine")


def essential_differences(old: Lock, new: Lock) -> list[str]:
    """A sentence for each difference in the core, the backbone, the algorithm or the engine; Python may differ."""

    def essential(lock: Lock) -> Lock:
        return lock.model_copy(
            update={"python": "", "plugins": tuple(p for p in lock.plugins if p.section in ESSENTIAL)}
        )

    return compare_lock(essential(old), essential(new))
