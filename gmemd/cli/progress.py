"""A bar on stderr for what takes its time; nothing where that is no terminal."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gmemd.cli.output import console

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE_SECONDS = 1.0


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[float | None, str], None] | None]:
    """Yield what notes a ratio (None: unknown) with its description; None without a terminal.

    The bar appears once that has taken a second, and is gone at the end.
    """
    errors = console(stderr=True)
    if not errors.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn  # noqa: PLC0415

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(show_speed=False),
        console=errors,
        transient=True,
    )
    task = bar.add_task(description, total=None)

    def note(ratio: float | None, words: str) -> None:
        bar.update(
            task,
            description=words,
            completed=ratio or 0.0,
            total=None if ratio is None else 1.0,
        )

    starting = threading.Timer(PATIENCE_SECONDS, bar.start)
    starting.start()
    try:
        yield note
    finally:
        starting.cancel()
        starting.join()
        if bar.live.is_started:
            bar.stop()
