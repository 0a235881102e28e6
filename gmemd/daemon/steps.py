"""Named points in the daemon's work. A test stops the daemon dead at one, and starts it again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

hook: Callable[[str], None] | None = None
"""Called with the name of each step, in whichever thread takes it; None: nothing is."""


def step(name: str) -> None:
    """Take note that a step is reached."""
    if hook is not None:
        hook(name)
