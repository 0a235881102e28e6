"""Talking to the daemon from other programs. Imports nothing beyond the standard library.

``Client`` blocks, ``AsyncClient`` is asyncio's; both have one method per method of io.gmemd.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gmemd.client.blocking import Client
from gmemd.client.memory import Memory, Offered, Placed, Progress
from gmemd.client.wire import DEFAULT_SOCKET

if TYPE_CHECKING:
    from gmemd.client.nonblocking import AsyncClient

__all__ = ["DEFAULT_SOCKET", "AsyncClient", "Client", "Memory", "Offered", "Placed", "Progress"]


def __getattr__(name: str) -> object:
    """Import what stands on asyncio only where it is asked for."""
    if name == "AsyncClient":
        from gmemd.client.nonblocking import AsyncClient  # noqa: PLC0415  asyncio is slow to import

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
