"""Who a call names by its file descriptors."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from gmemd.daemon.named import holder_of
from gmemd.daemon.varlink.peer import Peer
from gmemd.daemon.varlink.protocol import Call

if TYPE_CHECKING:
    from gmemd.daemon.work import Workers


class HungUp:
    """Workers whose caller hangs up while they read."""

    async def read(self, *_: object) -> None:
        raise asyncio.CancelledError


@pytest.mark.parametrize("index", [None, 0])
def test_a_caller_that_hangs_up_meanwhile_leaves_no_descriptor(index: int | None) -> None:
    pidfd = os.pidfd_open(os.getpid())
    try:
        call = Call(Peer(os.getpid(), 0, 0), (pidfd,))
        before = set(Path("/proc/self/fd").iterdir())
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(cast("Any", holder_of(call, index, cast("Workers", HungUp()))))
        assert set(Path("/proc/self/fd").iterdir()) == before
    finally:
        os.close(pidfd)
