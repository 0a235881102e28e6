"""Command lines in the common style: ``--flag value``, ``--flag=value`` and ``-f value``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


def read_flags(
    words: Sequence[str], *, take_any: Collection[str] = (), up_to: int | None = 1
) -> dict[str, list[str]]:
    """Read the values of each flag, in order, by the flag with its dashes.

    A flag has at most ``up_to`` values (None: any number) and none that begins with a dash; those
    in ``take_any`` have exactly one, whatever it looks like. Words before the first flag stand
    under an empty name, and what follows ``--`` is left out.
    """
    found: dict[str, list[str]] = {}
    flag = ""
    room: int | None = None
    must = False
    for word in words:
        if must:
            found[flag].append(word)
            must, room = False, 0
        elif word == "--":
            break
        elif word.startswith("-") and word != "-":
            flag, assigned, value = word.partition("=")
            found.setdefault(flag, []).extend([value] if assigned else [])
            must = flag in take_any and not assigned
            room = 0 if assigned else up_to
        elif room is None or room > 0:
            found.setdefault(flag, []).append(word)
            room = None if room is None else room - 1
    return found
