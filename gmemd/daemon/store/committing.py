"""One commit: the state is written, descriptors go out of the store and into it, systemd has them.

It runs in a thread, and touches nothing of the daemon's state.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gmemd.daemon.steps import step
from gmemd.daemon.store import statefile
from gmemd.daemon.store.fdstore import FdStore, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

BARRIER_EVERY = 128
"""Descriptors that are on the way to systemd at the same time, at the most."""


@dataclass(frozen=True, slots=True)
class Commit:
    """What one commit does. ``puts`` are the commit's own descriptors, which it closes.

    ``puts_state``: the state's memfd goes into the store, too.
    """

    data: bytes
    sequence: int
    puts: Mapping[str, int]
    puts_state: bool
    removes: tuple[str, ...]


@dataclass(slots=True)
class Done:
    """What became of it: names that were sent and removed, and what failed, in words.

    ``unwritten``: the state's memfd has a slot that isn't whole.
    """

    put: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unwritten: bool = False


class Committer:
    """Carries commits out, one at a time. ``memory`` is the state's memfd, if the store has one."""

    def __init__(self, store: FdStore, directory: Path) -> None:
        self._store = store
        self._file = statefile.StateFile(directory)
        self._memory: statefile.StateMemory | None = None

    def go_on(self, memory: statefile.StateMemory | None, set_aside: Iterable[str]) -> None:
        """Go on with what an earlier daemon had; a file that can't be read is kept aside."""
        self._memory = memory
        for ending in set_aside:
            self._file.set_aside(ending)

    def close(self) -> None:
        """Close what it has of its own. Harmless when repeated."""
        if self._memory is not None:
            self._memory.close()

    def carry_out(self, commit: Commit) -> Done:
        """In the thread: write, remove, put, wait."""
        done = Done()
        try:
            written = self._write(commit, done)
            step("store.recorded")
            if self._store.available and written:
                self._remove_all(commit, done)  # it may be what makes room
                self._put_all(commit, done)
                step("store.stored")
                if done.put or done.removed:
                    self._store.barrier()
                step("store.barred")
            elif self._store.available:
                done.failed |= dict.fromkeys(commit.puts, "the state could not be written")
        except StoreError as error:
            done.problems.append(error.message)
            lacking = (name for name in commit.puts if name not in done.put)
            done.failed |= dict.fromkeys(lacking, error.message)
        finally:
            for fd in commit.puts.values():
                os.close(fd)
        return done

    def _write(self, commit: Commit, done: Done) -> bool:
        """Write the state to both places; whether it is in one of them."""
        written = False
        if self._store.available:
            try:
                if self._memory is None:
                    self._memory = statefile.StateMemory()
                self._memory.write(commit.data, commit.sequence)
                written = True
            except OSError as error:
                done.unwritten = True
                done.problems.append(f"writing the state in memory: {error.strerror or error}")
        try:
            self._file.write(commit.data)
            written = True
        except OSError as error:
            done.problems.append(f"writing {self._file.path}: {error.strerror or error}")
        return written

    def _put_all(self, commit: Commit, done: Done) -> None:
        puts = dict(commit.puts)
        if self._memory is not None and commit.puts_state:
            puts = {statefile.NAME: self._memory.fd, **puts}
        for number, (name, fd) in enumerate(puts.items(), 1):
            self._store.put(name, fd)
            done.put.append(name)
            if number % BARRIER_EVERY == 0:
                self._store.barrier()

    def _remove_all(self, commit: Commit, done: Done) -> None:
        for number, name in enumerate(commit.removes, 1):
            self._store.remove(name)
            done.removed.append(name)
            if number % BARRIER_EVERY == 0:
                self._store.barrier()
