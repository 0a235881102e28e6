"""The types of the varlink interface io.gmemd that tell where in a region what is.

As those in gmemd.daemon.varlink.interface they are read at run time.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """What one piece of an address space holds."""

    by_node: dict[str, int]
    misplaced: int
    unknown: int


@dataclass(frozen=True)
class Stretch:
    """Bytes that follow upon each other in the guest's address space."""

    gpa: int | None
    offset: int
    size: int
    cell_size: int
    cells: list[Cell]


@dataclass(frozen=True)
class MisplacedRange:
    """From one misplaced page to another."""

    gpa: int | None
    offset: int
    size: int
    misplaced: int
    by_node: dict[str, int]


@dataclass(frozen=True)
class Where:
    """Where in a region what is."""

    stretches: list[Stretch]
    misplaced: list[MisplacedRange]
    more: int
    more_bytes: int
