"""Reading hidden states through hooks, on the modules that are asked for and no others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class _EnoughError(Exception):
    """Raised inside a hook once every wanted state has been read."""


@contextmanager
def record_inputs(modules: Mapping[int, nn.Module], stop_early: bool = False) -> Iterator[dict[int, Tensor]]:
    """Yield a dict that a forward within the block fills: key -> the hidden states [B, S, H] its module reads.

    `modules` stand in the order of execution; with `stop_early` the forward ends, and so does the block, as
    soon as the last of them is reached. The hooks are gone afterwards, whatever happened.
    """
    states: dict[int, Tensor] = {}
    last = [*modules][-1] if stop_early and modules else None
    handles = []
    for key, module in modules.items():

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], key: int = key) -> None:
            states[key] = args[0] if args else kwargs["hidden_states"]
            if key == last:
                raise _EnoughError

        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield states
    except _EnoughError:
        pass
    finally:
        for handle in handles:
            handle.remove()
