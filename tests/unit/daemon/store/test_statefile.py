"""The state's two places: a file that is replaced, and a memfd with two slots."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from gmemd.daemon.store.records import decode_state, encode_state
from gmemd.daemon.store.statefile import SLOT_BYTES, StateFile, StateMemory, choose_state

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def state(sequence: int, *, boot: str = "boot", padding: int = 0) -> bytes:
    return encode_state([b"x" * padding], boot_id=boot, sequence=sequence)


@pytest.fixture
def memory() -> Iterator[StateMemory]:
    made = StateMemory()
    yield made
    made.close()


def test_the_file_is_replaced_whole(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "state")
    assert file.read() is None
    file.write(state(1, padding=5000))
    file.write(state(2))
    assert file.read() == state(2)
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.path.parent.iterdir()] == ["state.json"]


def test_what_cant_be_written_leaves_what_was(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    file.write(state(1))
    file.path.with_name(".state.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        file.write(state(2))
    assert file.read() == state(1)


def test_what_cant_be_read_is_kept_aside(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    file.path.write_bytes(b"damaged")
    file.set_aside("damaged")
    assert file.read() is None
    assert (tmp_path / "state.damaged.json").read_bytes() == b"damaged"


def test_both_slots_are_read(memory: StateMemory) -> None:
    for sequence in range(1, 4):
        memory.write(state(sequence, padding=10 * sequence), sequence)
    assert list(memory.read()) == [state(2, padding=20), state(3, padding=30)]


def test_a_state_with_all_that_nobody_knows_in_its_header_is_read(memory: StateMemory) -> None:
    names = [f"r.1a.{number:08x}" for number in range(6000)]
    data = encode_state([b"x"], boot_id="boot", sequence=1, unclaimed=names)
    memory.write(data, 1)
    assert list(memory.read())[1].startswith(data)


def test_a_shorter_state_after_a_longer_one_is_itself(memory: StateMemory) -> None:
    memory.write(state(2, padding=100_000), 2)
    memory.write(state(4), 4)
    assert next(memory.read()) == state(4)


@pytest.mark.parametrize("written", [0, 1, 50, 120, 400])
def test_cut_off_while_it_is_written_the_one_before_is_there(
    memory: StateMemory, written: int
) -> None:
    memory.write(state(6, padding=1000), 6)
    memory.write(state(7, padding=1000), 7)
    os.pwrite(memory.fd, state(8, padding=900).replace(b"x", b"y")[:written], 0)
    found = choose_state([("it", slot) for slot in memory.read()], "boot")
    assert found.state is not None
    assert found.state.header.sequence == 7


def test_it_takes_the_memory_of_what_is_written(memory: StateMemory) -> None:
    memory.write(state(1, padding=4096), 1)
    assert os.fstat(memory.fd).st_blocks * 512 <= 3 * 4096
    with pytest.raises(OSError, match="too large"):
        memory.write(bytes(SLOT_BYTES + 1), 2)


def test_a_memfd_that_came_back_is_gone_on_with(memory: StateMemory) -> None:
    memory.write(state(1), 1)
    again = StateMemory(os.dup(memory.fd))
    again.write(state(2), 2)
    assert [decode_state(slot).header.sequence for slot in memory.read()] == [2, 1]
    again.close()


def test_the_newest_of_this_boot_counts() -> None:
    candidates = [("a", state(3)), ("b", state(5)), ("c", state(9, boot="before")), ("d", b"")]
    found = choose_state(candidates, "boot")
    assert found.state is not None
    assert found.state.header.sequence == 5
    assert (found.newer, found.damaged, found.problems) == (0, False, ())


def test_what_is_wrong_is_told() -> None:
    newer = state(3).replace(b'"gmemd_state":1', b'"gmemd_state":2')
    found = choose_state([("a", newer), ("b", b"damaged")], "boot")
    assert (found.state, found.newer, found.damaged) == (None, 2, True)
    assert [problem.partition(":")[0] for problem in found.problems] == ["a", "b"]
    assert choose_state([("a", bytes(100))], "boot").damaged is False
