"""Sets of numbers as Linux and libvirt write them: ``0-3,^1``; host nodes and vCPUs."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from gmemd.spec.problems import FieldError, FieldErrors, printable

if TYPE_CHECKING:
    from collections.abc import Iterable

HIGHEST_NODE = 1023
"""Linux has at most 1024 NUMA nodes (MAX_NUMNODES with CONFIG_NODES_SHIFT=10)."""

HIGHEST_VCPU = 4095
"""KVM has at most 4096 vCPUs per VM (KVM_MAX_VCPUS of x86 with CONFIG_KVM_MAX_NR_VCPUS)."""

_LONGEST_TEXT = 1 << 15
_PIECE = re.compile(r"(\^?)\s*([0-9]{1,9})(?:\s*-\s*([0-9]{1,9}))?")


def parse_nodeset(text: str) -> frozenset[int]:
    """Read host node numbers from a nodeset such as ``0``, ``0-3`` or ``0-3,^1``.

    Raises FieldError. Exclusions (``^``) take away from all that is included, in any order.
    """
    return parse_number_set(text, noun="host node", highest=HIGHEST_NODE)


def parse_nodeset_list(items: Iterable[str]) -> frozenset[int]:
    """Read host node numbers from a list of nodesets; raises FieldErrors for all at once."""
    return parse_number_list(items, noun="host node", highest=HIGHEST_NODE)


@lru_cache(maxsize=16)
def parse_vcpus(text: str) -> tuple[int, ...]:
    """Read vCPU numbers, ascending, from a list such as ``0-7,16-23``. Raises FieldError."""
    return tuple(sorted(parse_number_set(text, noun="vCPU", highest=HIGHEST_VCPU)))


def parse_vcpu_list(items: Iterable[str]) -> tuple[int, ...]:
    """Read vCPU numbers, ascending, from a list; raises FieldErrors for all at once."""
    return tuple(sorted(parse_number_list(items, noun="vCPU", highest=HIGHEST_VCPU)))


def format_nodeset(nodes: Iterable[int]) -> str:
    """Return the shortest text that `parse_nodeset` reads back: ``0-3,5``; empty for no nodes."""
    ordered = sorted(set(nodes))
    if not ordered:
        return ""
    if ordered[-1] - ordered[0] == len(ordered) - 1:  # thousands, and as a rule without a gap
        return str(ordered[0]) if len(ordered) == 1 else f"{ordered[0]}-{ordered[-1]}"
    breaks = [index for index, (a, b) in enumerate(pairwise(ordered), 1) if b != a + 1]
    runs = zip([0, *breaks], [*breaks, len(ordered)], strict=True)
    return ",".join(
        str(ordered[start]) if end == start + 1 else f"{ordered[start]}-{ordered[end - 1]}"
        for start, end in runs
    )


@lru_cache(maxsize=16)
def parse_number_set(text: str, *, noun: str, highest: int) -> frozenset[int]:
    """Read numbers from a text such as ``0-3,^1``, each at most ``highest``. Raises FieldError."""
    if not text.strip():
        raise FieldError(f"must name at least one {noun}, like 0, 0-3 or 0-3,^1")
    if len(text) > _LONGEST_TEXT:
        raise FieldError(f"is longer than {_LONGEST_TEXT} characters")
    pieces: dict[bool, set[range]] = {False: set(), True: set()}
    for piece in text.split(","):
        negated, numbers = _parse_piece(piece.strip(), noun=noun, highest=highest)
        pieces[negated].add(numbers)
    included, excluded = _united(pieces[False]), _united(pieces[True])
    if stray := excluded - included:
        raise FieldError(
            f"excludes {noun} {format_nodeset(stray)}, which it doesn't include",
            hint="^ takes away from what the rest names, like 0-3,^1",
        )
    found = frozenset(included - excluded)
    if not found:
        raise FieldError(f"excludes every {noun} that it includes")
    return found


def _united(ranges: Iterable[range]) -> set[int]:
    """All numbers of the ranges, each looked at once however often they overlap."""
    found: set[int] = set()
    end = 0
    for numbers in sorted(ranges, key=lambda numbers: numbers.start):
        found.update(range(max(numbers.start, end), numbers.stop))
        end = max(end, numbers.stop)
    return found


def parse_number_list(items: Iterable[str], *, noun: str, highest: int) -> frozenset[int]:
    """Unite the items' numbers; raises FieldErrors that tell each bad item's index."""
    numbers: set[int] = set()
    read: set[str] = set()
    errors: list[FieldError] = []
    for index, item in enumerate(items):
        try:
            text = item if isinstance(item, str) else "[]"
            if text not in read:
                numbers |= parse_number_set(text, noun=noun, highest=highest)
                read.add(text)
        except FieldError as error:
            errors.append(FieldError(error.message, hint=error.hint, within=(index,)))
    if errors:
        raise FieldErrors(errors)
    if not numbers:
        raise FieldError(f"must name at least one {noun}, like 0, 0-3 or [0, 2]")
    return frozenset(numbers)


def _parse_piece(piece: str, *, noun: str, highest: int) -> tuple[bool, range]:
    found = _PIECE.fullmatch(piece)
    if found is None:
        message = f"'{printable(piece)}' is neither a {noun} nor a range of them"
        raise FieldError(
            message if piece else "has nothing where a comma asks for more",
            hint="write 0, 0-3 or 0-3,^1",
        )
    first = int(found[2])
    last = first if found[3] is None else int(found[3])
    if last < first:
        raise FieldError(
            f"the range {printable(piece)} runs backwards", hint=f"write {last}-{first}"
        )
    if last > highest:
        raise FieldError(f"{noun} {last} is out of range, which is 0 to {highest}")
    return bool(found[1]), range(first, last + 1)
