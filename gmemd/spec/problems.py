"""What is wrong with a file, and where: faults by key path, problems by file, line and column."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from gmemd.errors import Exit, GmemdError

KeyPath: TypeAlias = tuple[str | int, ...]

LONGEST_VALUE = 60
MOST_PROBLEMS = 100
"""Of one file, that are told; of more their number."""


class FieldError(ValueError):
    """A value that can't be read: what would be accepted, and a way out.

    ``within`` is the place inside the value, where the value is a list or a mapping.
    """

    def __init__(self, message: str, *, hint: str | None = None, within: KeyPath = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.within = within


class FieldErrors(ValueError):  # noqa: N818 (several of them)
    """Several faults of one value."""

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__("; ".join(error.message for error in errors))
        self.errors = tuple(errors)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong at a key path of one document.

    ``on_key`` points at the key and not at its value, and leaves the value out of the message.
    """

    path: KeyPath
    message: str
    hint: str | None = None
    on_key: bool = False


@dataclass(frozen=True, slots=True)
class Problem:
    """A fault with its place in a file. Lines and columns count from 1; 0 where there is none.

    ``source`` is the line of the file that the place is in, as it is, ``width`` how many of its
    characters are meant.
    """

    file: str
    line: int
    column: int
    key: str
    value: str | None
    message: str
    hint: str | None = None
    source: str = field(default="", compare=False)
    width: int = field(default=1, compare=False)

    @property
    def place(self) -> str:
        """FILE:LINE:COLUMN, or FILE alone where the file has no such place."""
        file = printable(self.file, longest=None)
        return f"{file}:{self.line}:{self.column}" if self.line else file

    def __str__(self) -> str:
        key = f"{self.key}: " if self.key else ""
        got = f" (got {self.value})" if self.value is not None else ""
        return f"{self.place}: {key}{self.message}{got}"


class SpecError(GmemdError):
    """A VM spec, a configuration file or a directory of them that can't be used.

    The message has a line for each problem; with several, each is followed by its own hint.
    """

    exit_code = Exit.USAGE

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        if len(problems) == 1:
            super().__init__(str(problems[0]), hint=problems[0].hint)
        else:
            hints = (f"\n  hint: {problem.hint}" if problem.hint else "" for problem in problems)
            super().__init__("\n".join(map("".join, zip(map(str, problems), hints, strict=True))))
        self.problems = problems


def spell_path(path: KeyPath) -> str:
    """Spell a key path as people write it: ``guest_nodes[1].regions[0].size``."""
    spelled = ""
    for step in path:
        if isinstance(step, int):
            spelled += f"[{step}]"
        else:
            spelled += f".{printable(step)}" if spelled else printable(step)
    return spelled


def printable(text: str, *, longest: int | None = LONGEST_VALUE) -> str:
    """Escape what isn't printable, so that no file writes to a terminal; cut a long middle out."""
    if longest is not None and len(text) > longest:
        half = longest // 2
        text = f"{text[:half]}…{text[-half:]}"
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )
