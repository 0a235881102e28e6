"""A /proc of our own making: processes with descriptors, mappings, cgroups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

PAGE = 4096


class ProcTree:
    """Writes /proc/PID as the kernel would print it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc").mkdir()
        (root / "proc/uptime").write_text("1000.00 2000.00\n")
        (root / "proc/self").mkdir()
        (root / "proc/self/mountinfo").write_text("")

    def add(
        self,
        pid: int,
        argv: Sequence[str],
        *,
        fds: Mapping[int, str] | None = None,
        maps: str = "",
        cgroup: str = "0::/\n",
        comm: str = "vmm",
        parent: int = 1,
        start_ticks: int = 4200,
        address_space: int = 1 << 30,
        flags: int = 0x400000,
        mems: str = "0-3",
    ) -> Path:
        """One process; ``fds`` are links by number."""
        folder = self.root / f"proc/{pid}"
        folder.mkdir()
        self.set_stat(
            pid, comm, parent=parent, start_ticks=start_ticks, size=address_space, flags=flags
        )
        cmdline = "\0".join(argv) + "\0" if argv else ""
        (folder / "cmdline").write_bytes(cmdline.encode("utf-8", "surrogateescape"))
        (folder / "maps").write_text(maps)
        (folder / "cgroup").write_text(cgroup)
        (folder / "mountinfo").write_text("")
        (folder / "status").write_text(f"Name:\t{comm}\nMems_allowed_list:\t{mems}\n")
        (folder / "fd").mkdir()
        (folder / "fdinfo").mkdir()
        for fd, link in (fds or {}).items():
            (folder / f"fd/{fd}").symlink_to(link)
            extra = "pending:\t0\ntotal:\t0\nAPI:\taa:0:0\n" if "userfaultfd" in link else ""
            text = f"pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t{1000 + fd}\n{extra}"
            (folder / f"fdinfo/{fd}").write_text(text)
        return folder

    def set_stat(
        self,
        pid: int,
        comm: str = "vmm",
        *,
        parent: int = 1,
        start_ticks: int = 4200,
        size: int = 1 << 30,
        flags: int = 0x400000,
        stack: int = 0x7FFC00000000,
    ) -> None:
        """Write /proc/PID/stat."""
        fields = ["S", parent, pid, pid, 0, -1, flags, *([0] * 12), start_ticks, size, 100]
        fields += [0, 0, 0, stack]
        text = f"{pid} ({comm}) {' '.join(map(str, fields))}\n"
        (self.root / f"proc/{pid}/stat").write_text(text)


@pytest.fixture
def tree(tmp_path: Path) -> ProcTree:
    return ProcTree(tmp_path)
