"""Matrix products in float32 on a CPU, through oneDNN.

PyTorch hands them to MKL, which leaves half or more of some processors' speed unused (AMD's with AVX-512:
oneDNN is 2 to 3 times faster, more for the few rows of a decoding step). oneDNN comes with PyTorch but is
reached by an operator alone, which has no derivative; it is given here. Everything else goes to PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def _available() -> bool:
    """Whether this PyTorch has the operator and it computes what it should."""
    present: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not present or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    x, weight = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)
    try:
        return torch.equal(_onednn(x, weight), F.linear(x, weight))
    except RuntimeError:
        return False


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., K], weight [N, K] of any strides, or packed by `_pack` -> [..., N]."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def _pack(weight: Tensor, rows: int) -> Tensor:
    """A copy of `weight` in the layout that is fastest for products with about `rows` rows."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
    return packed


AVAILABLE = _available()


def _suits(x: Tensor, weight: Tensor) -> bool:
    return AVAILABLE and x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu" and x.numel() > 0


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grads[0].reshape(-1, weight.shape[0])
        return (
            _onednn(rows, weight.t()).view(x.shape) if needs_x else None,
            _onednn(rows.t(), x.reshape(-1, weight.shape[1]).t()) if needs_weight else None,
            rows.sum(dim=0) if needs_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`: x [..., K], weight [N, K], bias [N] -> [..., N]; once differentiable."""
    if not _suits(x, weight):
        return F.linear(x, weight, bias)
    trained = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    if torch.is_grad_enabled() and trained:
        result: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return result
    return _onednn(x, weight, bias)


class Linear(nn.Linear):
    """`torch.nn.Linear` that computes with `linear`, and with a packed copy of its weight after `pack`."""

    _packed: Tensor | None = None
    _packed_version = -1

    @classmethod
    def sharing(cls, other: nn.Linear) -> Linear:
        """A layer with the very parameters of `other`."""
        layer = cls(other.in_features, other.out_features, bias=other.bias is not None, device="meta")
        layer.weight, layer.bias = other.weight, other.bias
        return layer.train(other.training)

    def pack(self, rows: int) -> None:
        """Keep a second copy of the weight, laid out for about `rows` rows; for weights that no longer change."""
        if self._packed is not None and self._packed_version == self.weight._version:
            return
        if AVAILABLE and self.weight.dtype == torch.float32 and self.weight.device.type == "cpu":
            self._packed, self._packed_version = _pack(self.weight, rows), self.weight._version

    def forward(self, input: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        packed = self._packed
        if packed is None or self._packed_version != self.weight._version or not _suits(input, self.weight):
            return linear(input, self.weight, self.bias)
        if torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad):
            return linear(input, self.weight, self.bias)
        return _onednn(input, packed, self.bias)


def replace_linear(module: nn.Module) -> None:
    """Replace every `torch.nn.Linear` inside `module` by a `Linear` with the same parameters."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, Linear.sharing(child))


def pack_linear(module: nn.Module, rows: int) -> None:
    """`Linear.pack` every `Linear` inside `module`."""
    for layer in module.modules():
        if isinstance(layer, Linear):
            layer.pack(rows)
