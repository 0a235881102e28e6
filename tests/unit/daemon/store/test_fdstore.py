"""What systemd is sent, as sd_notify(3) has it. What systemd makes of it is tested with systemd."""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from gmemd.daemon.store.fdstore import (
    FdStore,
    StoreError,
    holder_name,
    inode_of,
    region_name,
    shortcomings,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(10)
        yield receiver


@pytest.fixture
def store(tmp_path: Path, manager: socket.socket) -> FdStore:
    assert manager
    return FdStore({"NOTIFY_SOCKET": str(tmp_path / "notify"), "FDSTORE": "6000"})


def received(manager: socket.socket) -> tuple[str, list[int]]:
    data, fds, _, _ = socket.recv_fds(manager, 4096, 16)
    return data.decode(), fds


def test_a_descriptor_goes_with_its_name_and_stays_when_its_process_exits(
    store: FdStore, manager: socket.socket
) -> None:
    fd = os.memfd_create("it")
    store.put("r.1.2", fd)
    text, fds = received(manager)
    assert text.splitlines() == ["FDSTORE=1", "FDNAME=r.1.2", "FDPOLL=0"]
    assert [os.fstat(each).st_ino for each in fds] == [os.fstat(fd).st_ino]
    for each in (fd, *fds):
        os.close(each)
    store.remove("r.1.2")
    assert received(manager) == ("FDSTOREREMOVE=1\nFDNAME=r.1.2", [])


def test_the_barrier_waits_until_it_is_taken(store: FdStore, manager: socket.socket) -> None:
    taken = []

    def take() -> None:
        text, fds = received(manager)
        taken.append(text)
        os.close(fds[0])

    thread = threading.Thread(target=take)
    thread.start()
    store.barrier()
    thread.join()
    assert taken == ["BARRIER=1"]


def test_a_manager_that_doesnt_answer_is_told(store: FdStore) -> None:
    with pytest.raises(StoreError, match=r"within 0\.1 s"):
        store.barrier(0.1)


def test_a_manager_that_is_gone_is_told(tmp_path: Path) -> None:
    store = FdStore({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    with pytest.raises(StoreError, match="No such file"):
        store.remove("r.1.2")


@pytest.mark.parametrize(
    ("environment", "available", "limit", "told"),
    [
        ({}, False, 0, "systemd didn't start gmemd"),
        ({"NOTIFY_SOCKET": "/run/notify"}, True, 0, "before 254"),
        ({"NOTIFY_SOCKET": "/run/notify", "FDSTORE": "many"}, True, 0, "before 254"),
        ({"NOTIFY_SOCKET": "/run/notify", "FDSTORE": "6000"}, True, 6000, ""),
    ],
)
def test_what_it_can_do_is_known(
    environment: dict[str, str], *, available: bool, limit: int, told: str
) -> None:
    store = FdStore(environment)
    assert (store.available, store.limit) == (available, limit)
    notes = shortcomings(store)
    assert told in "".join(notes)
    assert bool(notes) is bool(told)


def test_names_are_short_and_tell_the_inode() -> None:
    largest = region_name(((1 << 20) - 1, (1 << 48) - 1))
    assert inode_of(largest) == ((1 << 20) - 1, (1 << 48) - 1)
    assert len(largest) <= 20
    assert [inode_of(name) for name in ("r.x.1", "h.1", "s.1", "r", "")] == [None] * 5
    assert holder_name(31) == "h.1f"
