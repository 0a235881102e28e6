"""Damaged files of a whole process, and of a whole machine, below a directory of one's own."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from gmemd.errors import GmemdError
from gmemd.export.protection import Reading
from gmemd.host.reading import read_host
from gmemd.host.vms.finding import VmmFinder, still_runs
from gmemd.host.vms.holders import read_facts
from gmemd.host.vms.pieces import maps_a_vcpu
from gmemd.kernel.procfs.text import ProcfsError
from gmemd.spec.problems import SpecError
from tests.fuzz import texts
from tests.fuzz.checking import check_problems
from tests.fuzz.mutation import mutate
from tests.fuzz.yamls import REPOSITORY

if TYPE_CHECKING:
    from random import Random

_PID = 4321
_STAT = (
    b"4321 (qemu-system-x86) S 1 4321 4321 0 -1 4194560 100 0 0 0 5 5 0 0 20 0 4 0 1000 2147483648 "
    b"9999 18446744073709551615 1 1 140000000000 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
)
_MOUNTINFO = (
    b"22 1 0:21 / /dev/shm rw,nosuid shared:3 - tmpfs tmpfs rw,size=1k\n"
    b"23 1 0:22 / /dev/hugepages rw shared:4 - hugetlbfs hugetlbfs rw,pagesize=2M\n"
)
_STATUS = b"Name:\tqemu\nPid:\t4321\nMems_allowed_list:\t0-1\nCpus_allowed_list:\t0-3\n"
_FILES = {
    "stat": _STAT,
    "cmdline": texts.COMMAND_LINES[0] + b"\0",
    "comm": b"qemu-system-x86\n",
    "cgroup": b"0::/machine.slice/a.scope\n5:memory,cpuset:/a\n1:name=systemd:/b.service\n",
    "status": _STATUS,
    "mountinfo": _MOUNTINFO,
    "maps": texts.MAPS[0],
    "fdinfo/3": b"pos:\t0\nflags:\t02100002\nmnt_id:\t15\nino:\t2051\n",
    "fdinfo/4": b"pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t10\nAPI:\taa:1:2\n",
    "uptime": b"1000.00 2000.00\n",
}
_LINKS = {3: "/memfd:guest ram (deleted)", 4: "anon_inode:kvm-vm", 5: "/[kvm-gmem] (deleted)"}
_WORDS = (
    *(b"(", b")", b" ", b":", b"::", b"/", b"..", b"\n", b",", b" - ", b"tmpfs", b"hugetlbfs"),
    b"pagesize=",
    *(b"ino:\t", b"-1", b"0:22", b"Mems_allowed_list:\t", b"0-65535", b"kvm-vcpu", b"rw-s"),
    b".scope",
)  # fmt: skip


def process(rng: Random) -> bytes:
    """The files of one process, by their names, as JSON; some of them damaged."""
    files = dict(_FILES)
    for name in rng.sample(list(files), rng.randrange(1, 4)):
        words = texts.MAPS_WORDS if name == "maps" else _WORDS
        files[name] = mutate(rng, files[name], words, list(_FILES.values()))
    if rng.random() < 0.1:
        del files[rng.choice(list(files))]
    return json.dumps({name: data.decode("latin-1") for name, data in files.items()}).encode()


def check_process(data: bytes) -> bool:
    """Whether a VM is found; nothing that a process' files hold is an error."""
    files = json.loads(data)
    root = _tree("process")
    folder = root / f"proc/{_PID}"
    for name in _FILES:
        path = root / "proc/uptime" if name == "uptime" else folder / name
        if name in files:
            path.write_bytes(files[name].encode("latin-1"))
        else:
            path.unlink(missing_ok=True)
    finder = VmmFinder(root)
    found = finder.find()
    one = finder.find(_PID)
    for vmm in (*found.vmms, *one.vmms):
        still_runs(vmm, root)
    finder.mappings(_PID, 1 << 20)
    read_facts(_PID, root)
    try:
        maps_a_vcpu(_PID, root)
    except ProcfsError:
        return False
    return bool(found.vmms)


@cache
def _tree(name: str) -> Path:
    """A directory of this process, which goes with it."""
    root = Path(tempfile.mkdtemp(prefix=f"gmemd-fuzz-{name}-", dir=_in_memory()))
    if name == "process":
        folder = root / f"proc/{_PID}"
        (folder / "fd").mkdir(parents=True)
        (folder / "fdinfo").mkdir()
        (root / "proc/self").mkdir()
        (root / "proc/self/mountinfo").write_bytes(_MOUNTINFO)
        for fd, link in _LINKS.items():
            (folder / f"fd/{fd}").symlink_to(link)
    elif name == "host":
        shutil.copytree(REPOSITORY / "tests/fixtures/hosts/cxl", root, dirs_exist_ok=True)
    _made.append(root)
    return root


_made: list[Path] = []


def remove() -> None:
    """Remove what was made. Harmless when repeated."""
    _tree.cache_clear()
    while _made:
        shutil.rmtree(_made.pop(), ignore_errors=True)


def _in_memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  made by mkdtemp


def check_web(data: bytes) -> bool:
    """Whether it protects the metrics; the files that it names aren't there, or are none."""
    path = _tree("web") / "web.yaml"
    path.write_bytes(data)
    try:
        Reading(path).protection()
    except SpecError as error:
        check_problems(error, data, str(path))
        return False
    return True


_HOST_FILES = {
    str(path.relative_to(REPOSITORY / "tests/fixtures/hosts/cxl")): path.read_bytes()
    for path in sorted((REPOSITORY / "tests/fixtures/hosts/cxl").rglob("*"))
    if path.is_file()
}


def host(rng: Random) -> bytes:
    """Files of a recorded machine that are not as they were recorded, as JSON."""
    changed = {}
    for name in rng.sample(list(_HOST_FILES), rng.randrange(1, 3)):
        damaged = mutate(rng, _HOST_FILES[name], (*_WORDS, *texts.ZONEINFO_WORDS))
        changed[name] = damaged.decode("latin-1")
    return json.dumps(changed).encode()


def check_host(data: bytes) -> bool:
    """Whether it is a machine."""
    files = json.loads(data)
    root = _tree("host")
    for name, content in files.items():
        (root / name).write_bytes(content.encode("latin-1"))
    try:
        read_host(root)
    except GmemdError:
        return False
    finally:
        for name in files:
            (root / name).write_bytes(_HOST_FILES[name])
    return True
