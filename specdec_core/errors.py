"""Errors that the user can mend. Everything else is a bug of ours."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """One clear sentence that names the file, line or key and the mend; the CLI exits with code 2."""


class NothingToTrain(UserError):
    """An algorithm without training was asked to train."""


class UserErrors(UserError):
    """Several such sentences, found in one pass and reported together."""

    def __init__(self, messages: Sequence[str]) -> None:
        self.messages = tuple(messages)
        super().__init__("\n".join(self.messages))
