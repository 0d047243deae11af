"""float32 masters of what is trained: what the optimizer steps, whatever type the modules compute in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def cast_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast a module's parameters in place; its buffers, such as rotary frequencies, keep their precision."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


class MasterWeights:
    """A float32 twin of every parameter of some modules; in float32 the parameter is its own master.

    Gradients are summed in the masters over the accumulation window, since bfloat16 would lose the small ones.
    """

    def __init__(self) -> None:
        self.parameters: dict[str, nn.Parameter] = {}
        self.masters: dict[str, Tensor] = {}
        self._copies: list[tuple[nn.Parameter, Tensor]] = []

    def add(self, module: nn.Module, dtype: torch.dtype | None = None, prefix: str = "") -> dict[str, Tensor]:
        """Cast a module's parameters to `dtype`, None for the type they have, and make their masters.

        Returns the masters by the parameters' names in the module; here `prefix` comes before them. A tied parameter
        has one master, under its first name.
        """
        added: dict[str, Tensor] = {}
        for name, parameter in module.named_parameters():
            master: Tensor = parameter
            wide, narrow = parameter.data.float(), dtype or parameter.dtype
            parameter.data = wide.to(narrow)
            if narrow != torch.float32:
                master = wide.requires_grad_(parameter.requires_grad)
                self._copies.append((parameter, master))
            self.parameters[prefix + name], self.masters[prefix + name] = parameter, master
            added[name] = master
        return added

    def replace_in(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The same parameter groups over the masters."""
        master_of = {id(parameter): self.masters[name] for name, parameter in self.parameters.items()}
        return [{**group, "params": [master_of[id(p)] for p in group["params"]]} for group in groups]

    def collect_gradients(self) -> None:
        """Move what one backward left in the parameters into the masters' gradients."""
        for parameter, master in self._copies:
            if parameter.grad is not None:
                gradient = parameter.grad.float()
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                parameter.grad = None

    def gradients(self) -> list[Tensor]:
        """Every gradient of the window."""
        return [master.grad for master in self.masters.values() if master.grad is not None]

    def clear_gradients(self) -> None:
        """Forget the gradients."""
        for master in self.masters.values():
            master.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters into the parameters."""
        for parameter, master in self._copies:
            parameter.copy_(master)

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Set the masters by parameter name, and publish them."""
        for name, master in self.masters.items():
            master.copy_(weights[name])
        self.publish()
