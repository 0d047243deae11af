"""Events of a run, told to every observer. An observer cannot stop a run that has begun.

An observer that raises is named in one warning and told nothing more. One exception: a UserError from
`specdec_run_started` stops the run, because nothing is lost yet and the user can mend it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pluggy

from specdec_core.errors import UserError
from specdec_core.registry.hooks import Hooks

logger = logging.getLogger(__name__)


class Events:
    """`events.specdec_step_finished(run=..., step=..., metrics=...)` calls that hook of each observer in turn.

    Every hook of `specdec_core.registry.hooks.Hooks` is a method; arguments are passed by name.
    """

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self._manager = manager

    def __getattr__(self, hook: str) -> Callable[..., None]:
        if not hasattr(Hooks, hook):
            raise AttributeError(f"there is no hook {hook}")
        caller = getattr(self._manager.hook, hook)

        def broadcast(**arguments: Any) -> None:
            plugins = [implementation.plugin for implementation in reversed(caller.get_hookimpls())]
            for plugin in plugins:
                alone = self._manager.subset_hook_caller(hook, [other for other in plugins if other is not plugin])
                try:
                    alone(**arguments)
                except KeyboardInterrupt:
                    raise
                except BaseException as error:
                    if isinstance(error, UserError) and hook == "specdec_run_started":
                        raise
                    self._drop(plugin, hook, error)

        return broadcast

    def _drop(self, plugin: Any, hook: str, error: BaseException) -> None:
        name = self._manager.get_name(plugin)
        self._manager.unregister(plugin)
        logger.warning("%s failed in %s and is told nothing more: %s: %s", name, hook, type(error).__name__, error)
        logger.debug("the failure's traceback", exc_info=error)
