"""Specs that change, break or go while a VMM has the memory: its memory stays as it is."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from gmemd.client.blocking import CallError, call
from tests.kernel.daemon.vmms import vmm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kernel.daemon.conftest import Daemon
    from tests.kernel.daemon.vmms import Vmm

MIB = 1 << 20
NAMES = {"made": "create", "own": "register"}
SPEC = """\
version: 1
vm: {vm}
source: {source}
backend: memfd
prefault: true
guest_nodes:
  - {{id: 0, memory: 8MiB, host_nodes: 0}}
  - {{id: 1, memory: 4MiB, host_nodes: 0}}
"""
HEAD = "source: [a-z]+\nbackend: memfd\nprefault: true"
PENDING = {
    "size of guest node 0": ("8MiB", "16MiB"),
    "size of guest node 1": ("4MiB", "2MiB"),
    "backend of guest node 0": ("backend: memfd", "backend: guest_memfd"),
    "page_size of guest node 0": ("backend: memfd", "backend: memfd\npage_size: 2MiB"),
    "guest_nodes changed": ("  - {id: 1.*\n", ""),
    "cgroup": ("backend: memfd", "backend: memfd\ncgroup: /payer"),
    "source, confidential, backend": (HEAD, "source: adopt\nconfidential: true"),
    "source, backend": (HEAD, "source: observe"),
}


class Held:
    """A VM whose memory gmemd made, and one whose VMM made it; both in use, with something in it.

    Their specs are files of two directories, of which the first one's count.
    """

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.vmms: dict[str, Vmm] = {}
        self.second = daemon.directory / "run.d"
        text = daemon.config.read_text()
        daemon.config.write_text(text.replace(f"[{daemon.vms}]", f"[{daemon.vms}, {self.second}]"))
        self.second.mkdir()
        self.write()

    def use(self, made: Vmm, own: Vmm) -> None:
        self.daemon.wait_for("made", "ready")
        self.vmms = {"made": made, "own": own}
        made.do("acquire", "made")
        own.do("make", "own", 8 * MIB, 4 * MIB)
        own.do("register", "own", [(0, 0, 0, 8 * MIB), (1, 1, 0, 4 * MIB)])
        for name, each in self.vmms.items():
            each.do("fill", name, 9)

    def write(self, before: str = "", after: str = "") -> None:
        """Write the specs as they should be, but for one change."""
        for name, source in NAMES.items():
            text = SPEC.format(vm=name, source=source)
            assert re.search(before, text)
            (self.daemon.vms / f"{name}.yaml").write_text(re.sub(before, after, text, count=1))

    def reload(self) -> list[str]:
        """Read them again, rightly or wrongly: all is as it was. What is said of each VM."""
        with suppress(CallError):
            call(self.daemon.socket, "Reload")
        said = []
        for name, each in self.vmms.items():
            told = self.daemon.describe(name)
            assert (told["state"], told["holder"]["pid"]) == ("ready", each.pid), told
            sizes = [node["memory"] for node in told["guest_nodes"]]
            assert sizes == [8 * MIB, 4 * MIB]
            assert each.do("look", name) == [9, 9]
            said.append(" ".join(told["warnings"]))
        return said


@contextmanager
def held(daemon: Daemon) -> Iterator[Held]:
    memory = Held(daemon)
    with daemon.running(), vmm(daemon) as made, vmm(daemon) as own:
        memory.use(made, own)
        yield memory


def test_what_takes_other_memory_is_pending(daemon: Daemon) -> None:
    with held(daemon) as memory:
        for what, change in PENDING.items():
            memory.write(*change)
            for said in memory.reload():
                assert "pending change" in said, what
                assert what in said
        memory.write()
        assert memory.reload() == ["", ""]


def test_no_mistake_in_a_file_or_directory_frees_anything(daemon: Daemon) -> None:
    vms, aside = daemon.vms, daemon.directory / "aside"

    def put(name: str, make: Callable[[Any], object]) -> None:
        (vms / name).unlink()
        make(vms / name)

    mistakes: dict[str, Callable[[], object]] = {
        "empty file": lambda: put("made.yaml", lambda path: path.write_text("")),
        "no text": lambda: put("own.yaml", lambda path: path.write_bytes(b"\xff\0")),
        "a directory": lambda: put("made.yaml", lambda path: path.mkdir()),
        "a pipe": lambda: put("own.yaml", os.mkfifo),
        "a link to nothing": lambda: put("made.yaml", lambda path: path.symlink_to("nowhere")),
        "another name": lambda: (vms / "made.yaml").rename(vms / "renamed.yaml"),
        "another's name": lambda: shutil.copy(vms / "own.yaml", vms / "made.yaml"),
        "another ending": lambda: (vms / "own.yaml").rename(vms / "own.yaml.bak"),
        "one file gone": lambda: put("made.yaml", lambda _: None),
        "all files gone": lambda: [path.unlink() for path in vms.iterdir()],
        "no directory": lambda: vms.rename(aside),
        "no directory, but a file": lambda: (vms.rename(aside), vms.write_text("")),
        "a double": lambda: (memory.second / "made.yaml").write_text(
            SPEC.format(vm="made", source="create").replace("8MiB", "32MiB")
        ),
        "only the double": lambda: (
            (vms / "made.yaml").rename(memory.second / "made.yaml"),
            (memory.second / "own.yaml").write_text("version: 7\n"),
        ),
    }
    with held(daemon) as memory:
        for what, make in mistakes.items():
            make()
            memory.reload()
            assert daemon.answers(), what
            for directory in (vms, aside, memory.second):
                shutil.rmtree(directory, ignore_errors=True)
            vms.unlink(missing_ok=True)
            vms.mkdir()
            memory.second.mkdir()
            memory.write()
            assert memory.reload() == ["", ""], what
        daemon.until(lambda: daemon.names() == set(NAMES))
        assert daemon.metrics()["gmemd_config_last_reload_successful"] == 1


def test_what_changes_no_memory_is_applied_to_it(daemon: Daemon) -> None:
    with held(daemon) as memory:
        memory.write("backend: memfd", "backend: memfd\ndrift_tolerance: 3%\nowner: {user: nobody}")
        assert memory.reload() == ["", ""]
        daemon.until(lambda: all(daemon.describe(n)["drift_tolerance"] == 0.03 for n in NAMES))
        memory.write("8MiB, host_nodes: 0", "8MiB, host_nodes: 0, policy: preferred")
        memory.reload()
        for name in NAMES:
            daemon.until(lambda vm=name: mode(daemon.describe(vm)) == "preferred")
        memory.write()
        memory.reload()
        for name in NAMES:
            daemon.until(lambda vm=name: mode(daemon.describe(vm)) == "bind")
        memory.write("prefault: true", "prefault: true\non_vmm_exit: keep")
        assert memory.reload() == ["", ""]
        daemon.until(lambda: "changed spec applied" in daemon.log.read_text().splitlines()[-1])
        for each in memory.vmms.values():
            each.kill()
        for name in NAMES:
            daemon.until(lambda vm=name: daemon.describe(vm)["holder"]["alive"] is False)
        memory.write()
        with suppress(CallError):
            call(daemon.socket, "Reload")
        with vmm(daemon) as next_one:
            next_one.do("acquire", "made")
            assert next_one.do("look", "made") == [9, 9], "a reload freed what was kept"


def mode(told: dict[str, Any]) -> str:
    """The policy that the kernel was seen to hold for a VM's first region."""
    return str((told["guest_nodes"][0]["regions"][0]["policy_read"] or {}).get("mode"))
