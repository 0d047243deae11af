"""Exit codes: 0 done, 1 a bug of ours (with its traceback), 2 something that the user can mend, 130 interrupted."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from specdec_core.errors import UserError

MENDABLE = 2


class Commands(TyperGroup):
    """The root command: a UserError becomes `error: ...` lines on stderr and exit code 2.

    Typer itself exits with 2 on wrong usage and with 130 on Ctrl-C.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            for line in str(error).splitlines():
                typer.echo(f"error: {line}", err=True)
            raise typer.Exit(MENDABLE) from error
