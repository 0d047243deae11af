"""Elementwise pieces of a decoder layer that keep for the backward only what they cannot cheaply make again.

PyTorch's own keep every intermediate: two thirds more memory for a SwiGLU, twice as much for an RMSNorm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from specdec_core.nn.linear import linear


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm` over the last dimension that keeps its input and one number a row."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., H], computed in float32."""
        assert self.weight is not None
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        result: Tensor = _RMSNorm.apply(x, self.weight, eps)  # type: ignore[no-untyped-call]
        return result


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        scale = wide.pow(2).mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight.float()).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        needs_x, needs_weight, _ = ctx.needs_input_grad
        grad, normed = grads[0].float(), x.float() * scale
        grad_x = grad_weight = None
        if needs_weight:
            grad_weight = (grad * normed).flatten(0, -2).sum(0).to(weight.dtype)
        if needs_x:
            scaled = grad * weight.float()
            along = torch.linalg.vecdot(scaled, normed).unsqueeze(-1) / x.shape[-1]
            grad_x = scaled.sub_(normed.mul_(along)).mul_(scale).to(x.dtype)
        return grad_x, grad_weight, None


def swiglu_down(gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """linear(silu(gate) * up): gate and up [..., I], weight [H, I] -> [..., H] (arXiv 2002.05202).

    Keeps gate and up; their product is made again for the gradient of the weight.
    """
    result: Tensor = _SwiGLUDown.apply(gate, up, weight, bias)  # type: ignore[no-untyped-call]
    return result


class _SwiGLUDown(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return linear(F.silu(gate).mul_(up), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        needs_gate, needs_up, needs_weight, needs_bias = ctx.needs_input_grad
        grad = grads[0].reshape(-1, weight.shape[0])
        share = torch.sigmoid(gate)
        activated = gate * share
        grad_weight = grad_gate = grad_up = None
        if needs_weight:
            grad_weight = linear(grad.t(), (activated * up).reshape(-1, weight.shape[1]).t())
        if needs_gate or needs_up:
            inner = linear(grad, weight.t()).view(gate.shape)
            grad_up = inner * activated if needs_up else None
            if needs_gate:
                # silu' = s (1 + x (1 - s)), s the sigmoid of x
                slope = activated.neg_().add_(gate).add_(1).mul_(share)
                grad_gate = inner.mul_(up).mul_(slope)
        return grad_gate, grad_up, grad_weight, grad.sum(0) if needs_bias else None
