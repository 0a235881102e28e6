"""`gmemd run`: its own cgroup pays where the spec says so, on the nodes that the spec names."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel.daemon.conftest import Daemon
from tests.numa.test_prefault_cgroup import charged

if TYPE_CHECKING:
    from collections.abc import Iterator

MOUNT = Path("/sys/fs/cgroup")
SPEC = """\
version: 1
vm: paid
source: create
backend: memfd
cgroup: peer
guest_nodes:
  - {id: 0, vcpus: 0, memory: 64MiB, host_nodes: 2, policy: bind}
  - {id: 1, vcpus: 1, memory: 32MiB, host_nodes: 3, policy: bind}
"""


@pytest.fixture
def payer() -> Iterator[Path]:
    """A cgroup with the memory controller, empty again at the end."""
    (MOUNT / "cgroup.subtree_control").write_text("+memory")
    directory = MOUNT / "gmemd-test-run"
    directory.mkdir()
    yield directory
    directory.rmdir()


def test_the_cgroup_of_the_command_pays(tmp_path: Path, payer: Path) -> None:
    daemon = Daemon(tmp_path)
    (daemon.vms / "paid.yaml").write_text(SPEC)
    run = daemon.command("run", "paid", "--socket", str(daemon.socket), "--", "cat")
    with daemon.running():
        daemon.wait_for("paid", "ready")
        assert charged(payer) == {}
        with subprocess.Popen(
            ["sh", "-c", f'echo $$ > {payer}/cgroup.procs; exec "$@"', "sh", *run],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"cat, by now\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"cat, by now\n"
            paid = charged(payer)
            assert (paid[2], paid[3]) == (64, 32)
            process.communicate()
        assert process.returncode == 0
        daemon.until(lambda: charged(payer).keys().isdisjoint({2, 3}))
