"""Linear layers in int8 on a CPU, for a draft that proposes: a quarter of the memory to read for each token.

Weights are rounded to 8 bits, one scale for each output; inputs too, with one scale and zero point for each call.
A draft may be rounded as one likes: what the target does not agree with, it does not accept.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from specdec_core.errors import UserError

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


def quantize_linear(module: nn.Module) -> None:
    """Replace every `torch.nn.Linear` inside `module` by an `Int8Linear`. Raises UserError where there is no int8."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                _check(child)
                setattr(parent, name, Int8Linear(child))


def _check(layer: nn.Linear) -> None:
    if layer.weight.device.type != "cpu" or torch.backends.quantized.engine in ("none", "qnnpack"):
        raise UserError(
            'eval.draft_dtype = "int8" needs an x86 CPU and a PyTorch with its int8 products; choose "float32" or '
            '"bfloat16", or engine.device = "cpu"'
        )
