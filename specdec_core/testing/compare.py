"""Comparisons that say what differs and by how much."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

TOLERANCE = 1e-4


def assert_close(found: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Equal up to `tolerance` times the largest expected value, or times 1 if that is less."""
    assert found.shape == expected.shape, f"{what} has shape {list(found.shape)}, expected {list(expected.shape)}"
    if not expected.numel():
        return
    found, expected = found.double(), expected.double()
    assert bool(found.isfinite().all()), f"{what} holds values that are not finite"
    gap, scale = float((found - expected).abs().max()), max(1.0, float(expected.abs().max()))
    assert gap <= tolerance * scale, f"{what} differs by {gap:.3g}, of values up to {float(expected.abs().max()):.3g}"


def assert_same(found: Tensor, expected: Tensor, what: str) -> None:
    """Equal to the last bit, in type and shape."""
    assert found.dtype == expected.dtype, f"{what} is {found.dtype}, expected {expected.dtype}"
    assert found.shape == expected.shape, f"{what} has shape {list(found.shape)}, expected {list(expected.shape)}"
    assert torch.equal(found, expected), f"{what} is not the same"


def assert_all_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """`assert_same` name by name."""
    assert_names(found, expected, what)
    for name, tensor in expected.items():
        assert_same(found[name], tensor, f"{what} {name}")


def assert_all_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Each tensor equal up to the tolerance times its own largest value, or a thousandth of that of all."""
    assert_names(found, expected, what)
    largest = max((float(tensor.abs().max()) for tensor in expected.values() if tensor.numel()), default=0.0)
    for name, tensor in expected.items():
        own = float(tensor.abs().max()) if tensor.numel() else 0.0
        scale = max(own, 1e-3 * largest, 1e-12)
        gap = float((found[name].double() - tensor.double()).abs().max()) if tensor.numel() else 0.0
        assert gap <= TOLERANCE * scale, f"{what} {name} differs by {gap:.3g}, of values up to {own:.3g}"


def assert_names(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """The same names."""
    missing, strange = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    assert not missing, f"{what}: {', '.join(missing)} is missing"
    assert not strange, f"{what}: {', '.join(strange)} should not be there"
