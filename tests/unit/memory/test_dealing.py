"""Chunks that several helpers are dealt at the same time, and what their guards see of them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from gmemd.memory.guard import Claims, Guard, next_chunk

MIB = 1 << 20
PAGE = 4096
REPOSITORY = Path(__file__).parents[3]
LIGHT = "import sys, gmemd.memory.prefault_child; print(*sorted(sys.modules))"


def guard_with(tmp_path: Path, *, free_pages: int, reserve_bytes: int = 0) -> Guard:
    """A guard of node 0 that reads this machine's zoneinfo with so many free pages per zone."""
    text = Path("/proc/zoneinfo").read_text()
    text = re.sub(r"pages free +\d+", f"pages free {free_pages}", text)
    text = re.sub(r"(nr_zone_(?:in)?active_file) +\d+", r"\1 0", text)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/zoneinfo").write_text(text)
    return Guard({0: reserve_bytes}, root=str(tmp_path))


def test_chunks_that_are_dealt_count_before_the_kernel_counts_them(tmp_path: Path) -> None:
    claims, guard = Claims(), guard_with(tmp_path, free_pages=100_000)
    room = guard.headroom(guard.available())
    taken = []
    while chunk := claims.take(guard, 1 << 40, PAGE):
        taken.append(chunk)
    assert len(taken) > 1
    assert room - PAGE < sum(taken) <= room
    for chunk in taken:
        claims.give_back(guard, chunk)
    assert claims.take(guard, 1 << 40, PAGE) == taken[0]


def test_a_chunk_of_one_node_leaves_room_on_another(tmp_path: Path) -> None:
    claims, guard = Claims(), guard_with(tmp_path, free_pages=100_000)
    elsewhere = Guard({5: 0}, root=guard.root)
    assert claims.take(guard, 1 << 40, PAGE)
    assert claims.take(elsewhere, 1 << 40, PAGE) == 0, "it doesn't exist, and so gives nothing"
    while claims.take(guard, 1 << 40, PAGE):
        pass
    beside = Guard({0: 0}, root=guard.root)
    assert claims.take(beside, 1 << 40, PAGE) == 0, "another guard of the same node"


def test_the_payers_room_bounds_a_chunk(tmp_path: Path) -> None:
    claims, guard = Claims(), guard_with(tmp_path, free_pages=1_000_000)
    assert claims.take(guard, 1 << 40, PAGE, payers_room=3 * MIB + 1) == 3 * MIB
    assert claims.take(guard, 1 << 40, PAGE, payers_room=0) == 0


def test_near_a_limit_nothing_is_dealt_ahead(tmp_path: Path) -> None:
    claims, guard = Claims(), guard_with(tmp_path, free_pages=100_000)
    assert claims.take(guard, 1 << 40, PAGE, ahead=True) == 0
    assert claims.take(guard, 1 << 40, PAGE)


def test_threads_share_what_one_may_have() -> None:
    headroom = 2048 * MIB
    assert next_chunk(1 << 40, headroom, PAGE) == 128 * MIB
    assert next_chunk(1 << 40, headroom, PAGE, n_threads=4) == 32 * MIB


def test_several_threads_end_with_small_chunks() -> None:
    remaining, chunks = 4096 * MIB, []
    while remaining:
        chunks.append(next_chunk(remaining, 1 << 40, PAGE, n_threads=2))
        remaining -= chunks[-1]
    assert chunks == sorted(chunks, reverse=True)
    assert chunks[0] == 256 * MIB
    assert chunks[-1] <= 16 * MIB
    assert next_chunk(512 * MIB, 1 << 40, PAGE) == 256 * MIB, "one thread waits for nobody"


def test_a_helper_starts_with_next_to_no_modules() -> None:
    """Each that it imports is waited for by whoever wants memory."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}\n{LIGHT}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    heavy = {"json", "typing", "enum", "re", "pathlib", "dataclasses", "socket", "subprocess"}
    assert not heavy & set(done.stdout.split())
