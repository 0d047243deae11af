"""Exit codes: 0 done, 1 a bug of ours (with its traceback), 2 something that the user can mend, 130 interrupted."""

from __future__ import annotations

import errno
from typing import Any

import typer
from typer.core import TyperGroup

from specdec_core.errors import UserError

MENDABLE = 2
# What the system refuses for reasons of its own.
REFUSALS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EIO})


class Commands(TyperGroup):
    """The root command: a UserError becomes `error: ...` lines on stderr and exit code 2, and so does a file that
    the system will not have read or written.

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
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            typer.echo(f"error: {error.filename or 'a file'}: {error.strerror}", err=True)
            raise typer.Exit(MENDABLE) from error
