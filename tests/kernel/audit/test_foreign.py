"""Where a running process' memory is: told exactly or estimated, and left as it was."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from gmemd.audit import foreign
from gmemd.audit.foreign import VmGoneError, audit_range
from gmemd.audit.model import PolicyRead
from gmemd.audit.scan import AuditStoppedError
from gmemd.drift.interval import pages_between
from gmemd.kernel.errors import KernelError, injected_failure
from gmemd.kernel.mapping import Mapping
from gmemd.kernel.pages import ForeignScan
from tests.kernel.audit.conftest import MIB, PAGE
from tests.kernel.target import HUGE, Target, page_content

if TYPE_CHECKING:
    from gmemd.audit.model import RegionAudit

SIZE = 16 * MIB
PAGES = SIZE // PAGE
SEED = 20261121
BOTH = pytest.mark.parametrize("sample_pages", [None, 500])


def audit(
    target: Target,
    *ranges: tuple[int, int],
    page_size: int = PAGE,
    sample_pages: int | None = None,
    seed: int = SEED,
    **options: object,
) -> RegionAudit:
    """An audit of the ranges, after which the process' memory is what it was before."""
    before = target.resident(*ranges)
    found = audit_range(
        target.pid,
        ranges,
        guest_node=3,
        index=1,
        page_size=page_size,
        sample_pages=sample_pages,
        rng=Random(seed),
        **options,
    )
    assert target.resident(*ranges) == before
    assert (found.guest_node, found.index, found.page_size) == (3, 1, page_size)
    assert sum(found.by_node.values()) + found.unknown_bytes == found.resident_bytes
    assert all(held % page_size == 0 for held in found.by_node.values())
    return found


def hits(found: RegionAudit) -> int:
    """Pages of a sample that were seen on a node."""
    assert found.sample is not None
    return sum(found.sample.by_node.values())


def holds(found: RegionAudit, pages: int) -> bool:
    """Whether the sample's interval of mapped pages has the true number in it."""
    assert found.sample is not None
    fewest, most = pages_between(hits(found), found.sample.drawn, found.sample.population)
    return fewest <= pages <= most


def test_pages_are_drawn_until_enough_exist(target: Target) -> None:
    memory = target.call("anonymous", SIZE)
    for page in range(0, PAGES, 4):
        target.call("touch", memory + page * PAGE, 1, PAGE)
    once = audit(target, (memory, SIZE), sample_pages=200)
    assert once.sample is not None
    assert once.sample.drawn == 200 > hits(once)
    covered: list[int] = []
    found = audit(
        target,
        (memory, SIZE),
        sample_pages=200,
        most_draws=16,
        confidence=0.99,
        progress=covered.append,
    )
    assert found.sample is not None
    assert 200 <= hits(found) <= 240
    assert found.sample.confidence == 0.99
    assert sum(covered) == SIZE
    assert holds(found, PAGES // 4)


def test_small_pages_are_told_exactly(target: Target) -> None:
    memory = target.call("anonymous", SIZE)
    target.call("touch", memory, 1000, 3 * PAGE)
    target.call("read", memory + PAGE, 500, 3 * PAGE)  # the page of zeros: nobody's memory
    found = audit(target, (memory, SIZE))
    assert found.resident_bytes == sum(found.by_node.values()) == 1000 * PAGE
    assert (found.size_bytes, found.pages_seen) == (SIZE, 1000)
    assert (found.exact, found.sample, found.unknown_reason, found.errors) == (True, None, "", {})


def test_a_sample_is_an_estimate_and_says_so(target: Target) -> None:
    memory = target.call("anonymous", SIZE)
    target.call("touch", memory, PAGES // 4, 4 * PAGE)
    found = audit(target, (memory, SIZE), sample_pages=1000)
    assert not found.exact
    assert found.sample is not None
    assert (found.sample.population, found.sample.drawn) == (PAGES, 1000)
    assert found.pages_seen == hits(found)
    assert found.resident_bytes == pytest.approx(SIZE / 4, rel=0.2)
    assert holds(found, PAGES // 4)
    assert audit(target, (memory, SIZE), sample_pages=1000) == found
    assert audit(target, (memory, SIZE), sample_pages=1000, seed=1) != found


@pytest.mark.parametrize("sample_pages", [PAGES, PAGES + 1, 1 << 40])
def test_a_sample_of_all_pages_is_exact(target: Target, sample_pages: int) -> None:
    memory = target.call("anonymous", SIZE)
    target.call("touch", memory, 77)
    found = audit(target, (memory, SIZE), sample_pages=sample_pages)
    assert (found.resident_bytes, found.sample, found.exact) == (77 * PAGE, None, True)


def test_the_interval_holds_the_truth_in_repeated_trials(target: Target) -> None:
    memory = target.call("anonymous", SIZE)
    target.call("touch", memory, PAGES // 8)
    truth = PAGES // 8
    trials = [
        audit_range(
            target.pid,
            [(memory, SIZE)],
            guest_node=0,
            index=0,
            page_size=PAGE,
            sample_pages=400,
            rng=Random(seed),
        )
        for seed in range(500)
    ]
    assert sum(holds(found, truth) for found in trials) >= 0.93 * 500
    mean = sum(found.resident_bytes for found in trials) / 500
    assert mean == pytest.approx(truth * PAGE, rel=0.02)


def test_transparent_huge_pages_count_their_bytes(target: Target) -> None:
    memory = target.call("transparent_huge", SIZE)
    target.call("touch", memory, 3, 2 * HUGE)
    if target.resident((memory, SIZE))["AnonHugePages:"] != 3 * HUGE:
        pytest.skip("the kernel gave no huge pages")
    assert audit(target, (memory, SIZE)).resident_bytes == 3 * HUGE
    assert holds(audit(target, (memory, SIZE), sample_pages=500), 3 * 512)


@pytest.mark.usefixtures("huge_pool")
def test_huge_pages_count_their_bytes(target: Target) -> None:
    fd = target.call("huge_memfd", 8 * HUGE)
    memory = target.call("map_file", fd, 8 * HUGE)
    target.call("touch", memory, 3, 2 * HUGE)
    found = audit(target, (memory, 8 * HUGE), page_size=HUGE)
    assert found.resident_bytes == sum(found.by_node.values()) == 3 * HUGE
    sampled = audit(target, (memory, 8 * HUGE), page_size=HUGE, sample_pages=5)
    assert sampled.sample is not None
    assert sampled.sample.population == 8
    assert holds(sampled, 3)


@BOTH
def test_a_region_in_several_mappings_is_one(target: Target, sample_pages: int | None) -> None:
    parts = [target.call("anonymous", length) for length in (MIB, 4 * MIB, 8 * MIB)]
    ranges = list(zip(parts, (MIB, 4 * MIB, 8 * MIB), strict=True))
    target.call("touch", parts[0], 256)
    target.call("touch", parts[2], 1024, 2 * PAGE)
    found = audit(target, *ranges[::-1], sample_pages=sample_pages)
    assert found.size_bytes == 13 * MIB
    if sample_pages is None:
        assert found.resident_bytes == 1280 * PAGE
    else:
        assert holds(found, 1280)


def test_what_exists_and_is_not_mapped_is_unknown(target: Target) -> None:
    fd = target.call("memfd", SIZE)
    target.call("write_file", fd, 0, 3 * MIB)
    memory = target.call("map_file", fd, SIZE)
    target.call("touch", memory + 8 * MIB, 256)
    found = audit(target, (memory, SIZE), allocated_bytes=4 * MIB)
    assert sum(found.by_node.values()) == MIB
    assert (found.resident_bytes, found.unknown_bytes) == (4 * MIB, 3 * MIB)
    assert found.unknown_reason == "allocated, but not mapped by the VMM"
    assert audit(target, (memory, SIZE), allocated_bytes=MIB).unknown_reason == ""
    assert target.resident((memory, SIZE))["Rss:"] == MIB


def test_of_a_sample_only_what_is_beyond_chance_is_not_mapped(target: Target) -> None:
    fd = target.call("memfd", SIZE)
    memory = target.call("map_file", fd, SIZE)
    target.call("touch", memory, PAGES // 2)
    found = audit(target, (memory, SIZE), sample_pages=500)
    most = pages_between(hits(found), 500, PAGES)[1] * PAGE
    exact = audit(target, (memory, SIZE), sample_pages=500, allocated_bytes=SIZE // 2)
    assert exact == found
    more = audit(target, (memory, SIZE), sample_pages=500, allocated_bytes=most + PAGE)
    assert more.unknown_bytes == PAGE
    assert more.by_node == found.by_node
    assert more.sample is not None
    assert more.sample.unknown == 0


@BOTH
def test_the_policies_are_handed_on(target: Target, sample_pages: int | None) -> None:
    memory = target.call("anonymous", SIZE)
    bind, other = PolicyRead("bind", frozenset({1})), PolicyRead("default", frozenset())
    found = audit(
        target, (memory, SIZE), sample_pages=sample_pages, policy=bind, other_policies=[other]
    )
    assert (found.policy, found.other_policies) == (bind, (other,))
    assert found.resident_bytes == 0


def test_nothing_mapped_is_nothing_seen(target: Target) -> None:
    found = audit(target, sample_pages=500)
    assert (found.size_bytes, found.resident_bytes, found.sample) == (0, 0, None)


def test_lengths_are_whole_pages(target: Target) -> None:
    with pytest.raises(ValueError, match="whole pages of 2097152 bytes"):
        audit(target, (HUGE, HUGE + PAGE), page_size=HUGE)


@pytest.mark.parametrize("reaped", [False, True])
@BOTH
def test_a_process_that_dies_meanwhile(
    target: Target, sample_pages: int | None, monkeypatch: pytest.MonkeyPatch, *, reaped: bool
) -> None:
    monkeypatch.setattr(foreign, "WINDOW_PAGES", 64)
    memory = target.call("anonymous", SIZE)

    def kill(_covered: int) -> None:
        target.kill()
        if reaped:
            target.reap()

    with pytest.raises(VmGoneError, match=f"pid {target.pid} ended"):
        audit(target, (memory, SIZE), sample_pages=sample_pages, progress=kill)


def test_memory_that_is_unmapped_meanwhile_is_not_there(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "WINDOW_PAGES", PAGES // 4)
    memory = target.call("anonymous", SIZE)
    target.call("touch", memory, PAGES)
    windows: list[int] = []

    def unmap(covered: int) -> None:
        windows.append(covered)
        if len(windows) == 2:
            target.call("unmap", memory, SIZE)

    found = audit_range(
        target.pid,
        [(memory, SIZE)],
        guest_node=0,
        index=0,
        page_size=PAGE,
        sample_pages=None,
        rng=Random(SEED),
        progress=unmap,
    )
    assert windows == [SIZE // 4] * 4
    assert found.resident_bytes == SIZE // 2
    assert (found.unknown_bytes, found.errors) == (0, {})


@BOTH
def test_it_stops_between_two_windows(
    target: Target, sample_pages: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "WINDOW_PAGES", 100)
    memory = target.call("anonymous", SIZE)
    stop = threading.Event()
    covered: list[int] = []

    def progress(length: int) -> None:
        covered.append(length)
        if len(covered) == 3:
            stop.set()

    with pytest.raises(AuditStoppedError):
        audit(target, (memory, SIZE), sample_pages=sample_pages, stop=stop, progress=progress)
    assert len(covered) == 3
    stop.clear()
    covered.clear()
    covered.extend([0, 0, 0])
    audit(target, (memory, SIZE), sample_pages=sample_pages, stop=stop, progress=progress)
    assert sum(covered) == SIZE


def test_what_the_kernel_cannot_tell_is_unknown(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No page of this machine is one that the kernel fails to tell of.
    answer = ForeignScan(100, {0: 50}, {errno.EIO: 30, errno.ENOENT: 20})
    monkeypatch.setattr(foreign, "scan_foreign_range", lambda *_: answer)
    monkeypatch.setattr(foreign, "scan_foreign_pages", lambda *_: answer)
    found = audit(target, (HUGE, 100 * PAGE))
    assert (found.resident_bytes, found.unknown_bytes) == (80 * PAGE, 30 * PAGE)
    assert (found.unknown_reason, found.errors) == ("the kernel says EIO", {"eio": 30})
    sampled = audit(target, (HUGE, 1000 * PAGE), sample_pages=100)
    assert (sampled.resident_bytes, sampled.unknown_bytes) == (800 * PAGE, 300 * PAGE)
    assert sampled.sample is not None
    assert sampled.sample.unknown == 30


def test_without_permission_the_call_says_so(target: Target) -> None:
    with injected_failure("move_pages", errno.EPERM), pytest.raises(KernelError) as caught:
        audit(target, (PAGE, SIZE))
    assert caught.value.hint is not None
    assert "CAP_SYS_PTRACE" in caught.value.hint


@pytest.fixture
def postcopy(target: Target) -> tuple[Target, int, int]:
    """A VMM whose guest's memory is still coming: process, its memfd, where it is mapped."""
    target.call("open_vm")
    fd = target.call("memfd", SIZE)
    memory = target.call("map_file", fd, SIZE)
    target.call("await_pages", memory, SIZE)
    return target, fd, memory


def arrive(target: Target, memory: int, first: int, pages: int) -> None:
    """Pages are touched, and hold what they should."""
    found = target.call("read", memory + first * PAGE, pages)
    assert found == [page_content(page) for page in range(first, first + pages)]


@pytest.mark.needs("kvm")
@BOTH
def test_memory_that_is_still_coming_comes_as_if_nobody_had_looked(
    postcopy: tuple[Target, int, int], sample_pages: int | None
) -> None:
    target, fd, memory = postcopy
    arrive(target, memory, 0, 300)
    found = audit(target, (memory, SIZE), sample_pages=sample_pages)
    if sample_pages is None:
        assert found.resident_bytes == 300 * PAGE
    else:
        assert holds(found, 300)
    arrive(target, memory, 300, 100)
    audit(target, (memory, SIZE), sample_pages=sample_pages, seed=1)
    arrive(target, memory, 400, PAGES - 400)
    arrive(target, memory, 0, PAGES)
    assert target.call("served") == list(range(PAGES))
    assert Path(f"/proc/{target.pid}/fd/{fd}").stat().st_blocks * 512 == SIZE


@pytest.mark.needs("kvm")
def test_populating_it_instead_would_have_lost_the_guests_pages(
    postcopy: tuple[Target, int, int],
) -> None:
    """What the test above is there to tell: a page made by a look is zeros, and never comes."""
    target, fd, memory = postcopy
    arrive(target, memory, 0, 8)
    own = os.open(f"/proc/{target.pid}/fd/{fd}", os.O_RDWR)
    with Mapping(own, 0, SIZE, protection="read") as window:
        window.populate_read(100 * PAGE, PAGE)
    os.close(own)
    assert target.call("read", memory + 100 * PAGE) == [0]
    assert 100 not in target.call("served")
