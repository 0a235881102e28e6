"""Why memory that a VMM has made can't be taken for what its spec says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gmemd.errors import Exit, GmemdError

if TYPE_CHECKING:
    from collections.abc import Sequence


class LayoutMismatchError(GmemdError):
    """A VMM's memory is not what the spec says; nothing was taken.

    ``guest_node`` is the one concerned, where it is one.
    """

    exit_code = Exit.USAGE

    def __init__(
        self, message: str, *, guest_node: int | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.guest_node = guest_node


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of several things that something could be: in words, and what is known of it.

    ``guest_node`` is the guest node that it would be; ``size_bytes`` is None for what has no size.
    """

    what: str
    pid: int | None = None
    guest_node: int | None = None
    size_bytes: int | None = None


class AmbiguousError(GmemdError):
    """What is asked for could be any of the candidates; nothing was taken."""

    exit_code = Exit.USAGE

    def __init__(
        self, message: str, *, candidates: Sequence[Candidate], hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.candidates = tuple(candidates)
