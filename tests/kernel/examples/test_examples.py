"""The examples do what they say, on memory of the real daemon."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from gmemd.client import Client
    from tests.kernel.daemon.conftest import Daemon

EXAMPLES = Path(__file__).parents[3] / "config/examples"
MIB = 1 << 20
IN_PIECES = """\
version: 1
vm: pieces
source: create
backend: memfd
prefault: true
guest_nodes:
  - id: 0
    vcpus: 0
    regions:
      - {size: 4MiB, host_nodes: 0, policy: bind}
      - {size: 2MiB, host_nodes: 0, policy: preferred}
"""


def released(client: Client, vm: str) -> bool:
    told = client.describe(vm)
    return told["state"] == "waiting" and told["holder"] is None


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here")
    program = tmp_path / "acquire"
    strict = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *strict, "-o", str(program), str(EXAMPLES / "acquire.c")], check=True)
    return program


def test_the_c_client(daemon: Daemon, client: Client, compiled: Path) -> None:
    daemon.write("vm")
    with daemon.running():
        with subprocess.Popen(
            [str(compiled), "vm", str(daemon.socket)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(2)]
            assert re.fullmatch(r"guest node 0: 0x0 \+ 0x800000 is memory at 0x\w+\n", lines[0])
            assert re.fullmatch(
                r"guest node 1: 0x40000000 \+ 0x400000 is memory at 0x\w+\n", lines[1]
            )
            assert (client.describe("vm")["holder"] or {})["pid"] == process.pid
            process.communicate()
        assert process.returncode == 0
        daemon.until(lambda: released(client, "vm"))


def test_the_c_client_with_regions(daemon: Daemon, compiled: Path) -> None:
    daemon.vms.joinpath("pieces.yaml").write_text(IN_PIECES)
    with daemon.running():
        done = subprocess.run(
            [str(compiled), "pieces", str(daemon.socket)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        )
        sizes = re.findall(r"^guest node 0: 0x\w+ \+ (0x\w+) is", done.stdout, re.MULTILINE)
        assert [int(size, 16) for size in sizes] == [4 * MIB, 2 * MIB]


def test_the_c_client_tells_errors(daemon: Daemon, compiled: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        command = [str(compiled), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    with daemon.running():
        assert run("none", str(daemon.socket)) == (3, 'acquire: "io.gmemd.NoSuchVM"\n')
    code, errors = run("none", str(tmp_path / "nothing"))
    assert (code, "No such file" in errors) == (4, True)
    assert run('a"b')[0] == 2
    assert run()[0] == 2


@pytest.mark.needs("kvm")
@pytest.mark.parametrize(
    "backend",
    [
        "memfd",
        pytest.param(
            "guest_memfd",
            marks=pytest.mark.needs("kvm", "guest_memfd_mmap", "guest_memfd_init_shared"),
        ),
    ],
)
def test_the_vmm(daemon: Daemon, client: Client, backend: str) -> None:
    daemon.write("vm", backend=backend)
    with daemon.running():
        with subprocess.Popen(
            [sys.executable, str(EXAMPLES / "vmm.py"), "vm", "--socket", str(daemon.socket)],
            cwd=EXAMPLES.parents[1],
            env={"PYTHONPATH": str(EXAMPLES.parents[1])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(5)]
            assert lines[0].startswith(f"guest node 0: {8 * MIB} bytes of {backend} at 0x0: bind 0")
            assert lines[2:] == [
                "the guest wrote to 2048 pages at 0x0\n",
                "the guest wrote to 1024 pages at 0x40000000\n",
                "done\n",
            ]
            nodes = client.audit("vm")["guest_nodes"]
            assert [node["drift"] and node["drift"]["resident"] for node in nodes] == [
                8 * MIB,
                4 * MIB,
            ]
            process.communicate()
        assert process.returncode == 0
        daemon.until(lambda: released(client, "vm"))


def test_the_vmm_tells_errors(daemon: Daemon) -> None:
    with daemon.running():
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / "vmm.py"), "none", "--socket", str(daemon.socket)],
            env={"PYTHONPATH": str(EXAMPLES.parents[1])},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("the daemon knows no VM named 'none'")
