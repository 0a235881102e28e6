"""Lines of text below tables: wrapped with a hanging indent at a terminal, left whole elsewhere."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_NARROWEST = 40


def print_line(
    out: Console, text: str, *, indent: int = 0, label: str = "", style: str = ""
) -> None:
    """Print ``label`` and text, indented; what is wrapped stands below the text's beginning."""
    first = f"{' ' * indent}{label}"
    wrapped = [text]
    if out.is_terminal:
        width = max(_NARROWEST, out.width - len(first))
        wrapped = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
    for number, line in enumerate(wrapped):
        start = first if number == 0 else " " * len(first)
        out.print(f"{start}{line}", style=style, soft_wrap=True)
