"""The root of gmemd's errors, and the exit codes of its command line."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of every subcommand."""

    OK = 0
    DRIFT = 1
    USAGE = 2
    HOST = 3
    NO_DAEMON = 4
    UNSEEN = 5
    NOT_PERMITTED = 6
    INTERNAL = 70


class GmemdError(Exception):
    """What failed and why, with a way out where one is known.

    ``hint`` is printed on a line of its own; ``exit_code`` is what the command line exits with.
    """

    exit_code: Exit = Exit.INTERNAL

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def in_one_line(self) -> str:
        """The message with its hint, as logs have it."""
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message
