"""Where in a region what is, as JSON. Sizes in bytes; offsets count from the guest node's start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gmemd.audit.model import Cell, Where


def where_to_json(where: Where, region_offset: int) -> dict[str, Any]:
    """Cells and misplaced ranges of a region that begins ``region_offset`` into its guest node."""
    return {
        "stretches": [
            {
                "gpa": stretch.gpa,
                "offset": region_offset + stretch.offset,
                "size": stretch.size_bytes,
                "cell_size": stretch.cell_bytes,
                "cells": [_cell_to_json(cell) for cell in stretch.cells],
            }
            for stretch in where.stretches
        ],
        "misplaced": [
            {
                "gpa": found.gpa,
                "offset": region_offset + found.offset,
                "size": found.size_bytes,
                "misplaced": found.misplaced_bytes,
                "by_node": by_node_to_json(found.by_node),
            }
            for found in where.misplaced
        ],
        "more": where.more,
        "more_bytes": where.more_bytes,
    }


def by_node_to_json(by_node: Mapping[int, int]) -> dict[str, int]:
    """Bytes per host node with string keys, as JSON wants them, ascending by node."""
    return {str(node): by_node[node] for node in sorted(by_node)}


def _cell_to_json(cell: Cell) -> dict[str, Any]:
    return {
        "by_node": by_node_to_json(cell.by_node),
        "misplaced": cell.misplaced_bytes,
        "unknown": cell.unknown_bytes,
    }
