"""File descriptors are closed where no thread can be had for it."""

from __future__ import annotations

import os
import threading

import pytest

from gmemd.daemon.varlink import closing


def test_they_are_closed_by_the_thread_that_stands_by(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoThread(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    closer = closing.Closer()
    monkeypatch.setattr(closing, "Thread", NoThread)
    closed = threading.Semaphore(0)
    fds = [*os.pipe(), *os.pipe()]
    for fd, source in zip(fds, ["one", "one", "another", None], strict=True):
        closer.close(fd, source, closed.release)
    for _ in fds:
        assert closed.acquire(timeout=30)
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    assert closer.waiting("one") == 0
    closer.end()
