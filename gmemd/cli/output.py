"""What subcommands print with: rich at a terminal, plain and stable text elsewhere, JSON."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PLAIN_WIDTH = 1000
"""Columns of output that is no terminal's: lines are never wrapped for it."""


def console(*, stderr: bool = False) -> Console:
    """Return a console on stdout (or stderr) that neither highlights nor reads markup in text.

    At a terminal it has that terminal's width and colours; elsewhere lines keep their length.
    """
    from rich.console import Console  # noqa: PLC0415  rich is imported only where something is drawn

    class Terminal(Console):
        """A console whose reader may go away: that is no failure of the command's."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PLAIN_WIDTH
    return Terminal(file=stream, width=width, highlight=False, markup=False, emoji=False)


def table(*, title: str | None = None) -> Table:
    """Return an empty table in gmemd's looks: no outer frame, a line below the headings."""
    from rich import box  # noqa: PLC0415  as above
    from rich.table import Table  # noqa: PLC0415  as above

    return Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )


def print_json(value: object) -> None:
    """Print a JSON value, indented, keys in the order given."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
