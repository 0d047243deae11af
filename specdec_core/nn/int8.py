"""Linear layers in int8 on a CPU, for a draft that proposes: a quarter of the memory to read for each token.

Weights are rounded to 8 bits, one scale for each output; inputs too, with one scale and zero point for each call.
A draft may be rounded as one likes: what the target does not agree with, it does not accept.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

LEVELS = 127
ZERO_POINT = 128


class Int8Linear(nn.Module):
    """What a `torch.nn.Linear` computes, to about 2%; without a derivative. Its weight stays to be looked at."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        weight = layer.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp_(min=torch.finfo(torch.float32).tiny).double() / LEVELS
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # quantised tensors are to go, but no other operator takes one call
            rounded = torch.quantize_per_channel(weight, scale, torch.zeros_like(scale).long(), 0, torch.qint8)
        bias = None if layer.bias is None else layer.bias.detach().float()
        self.packed = torch.ops.quantized.linear_prepack(rounded, bias)

    def forward(self, input: Tensor) -> Tensor:
        """[..., K] -> [..., N], in the input's type."""
        # The reduced range keeps sums of products within 16 bits on processors that need it.
        result: Tensor = torch.ops.quantized.linear_dynamic(input.float(), self.packed, reduce_range=True)
        return result.to(input.dtype)


def available(device: str) -> bool:
    """Whether there are int8 products on a device."""
    return torch.device(device).type == "cpu" and torch.backends.quantized.engine not in ("none", "qnnpack")


def quantize_linear(module: nn.Module) -> None:
    """Replace every `torch.nn.Linear` inside `module` by an `Int8Linear`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear(child))
