from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gmemd.cli.main import main
from gmemd.cli.run import own_cgroup_procs
from tests.unit.client.stub import Answer, Stub

if TYPE_CHECKING:
    from collections.abc import Iterator

ACQUIRED: dict[str, Any] = {
    "vm": "a",
    "state": "ready",
    "message": "",
    "progress_ratio": None,
    "regions": [],
    "warnings": [],
}


@pytest.fixture
def memfds() -> Iterator[tuple[int, int]]:
    first, second = os.memfd_create("run0"), os.memfd_create("run1")
    os.write(first, b"of node 0")
    os.write(second, b"of node 1")
    yield first, second
    os.close(first)
    os.close(second)


def gmemd_run(stub: Stub, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "gmemd", "run", "--socket", str(stub.path), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ran(stub: Stub, *arguments: str) -> tuple[int, str, str]:
    with gmemd_run(stub, *arguments) as process:
        out, errors = process.communicate()
    return process.returncode, out, errors


def test_the_command_gets_the_memory(stub: Stub, memfds: tuple[int, int]) -> None:
    stub.on("Acquire", Answer(ACQUIRED, memfds))
    files = "file=/proc/self/fd/{fd:1},share=on", "/proc/self/fd/{fd:0}"
    script = 'path=${1#file=}; cat "${path%,share=on}" "$2"'
    code, out, errors = ran(stub, "a", "--", "sh", "-c", script, "sh", *files)
    assert (code, out, errors) == (0, "of node 1of node 0", "")
    assert not stub.calls[0].more


def test_the_command_is_the_process_that_called(stub: Stub, memfds: tuple[int, int]) -> None:
    """It has the memory's fds and no other, and signals as any program has them."""
    stub.on("Acquire", Answer(ACQUIRED, memfds))
    script = "echo $$; ls /proc/$$/fd; grep SigIgn /proc/$$/status; exit 7"
    with gmemd_run(stub, "a", "--", "sh", "-c", script) as process:
        out, _ = process.communicate()
    pid, *fds, ignored = out.splitlines()
    assert (process.returncode, int(pid)) == (7, process.pid)
    assert len(fds) == 5
    assert int(ignored.split()[1], 16) == 0


def test_what_is_asked_of_the_daemon(stub: Stub, memfds: tuple[int, int], tmp_path: Path) -> None:
    stub.on("Acquire", Answer(ACQUIRED | {"warnings": ["mind this"]}, memfds))
    spec = tmp_path / "a.yaml"
    spec.write_text("version: 1\n")
    code, _, errors = ran(stub, "a", "--timeout", "1.5", "--spec", str(spec), "--", "true")
    assert (code, errors) == (0, "gmemd: a: mind this\n")
    parameters, inodes = stub.calls[0].parameters, stub.calls[0].inodes
    cgroup = own_cgroup_procs()
    if cgroup is not None:
        assert parameters.pop("cgroup") == 0
        assert inodes == [os.fstat(cgroup).st_ino]
        os.close(cgroup)
    assert parameters == {"vm": "a", "timeout_ms": 1500, "spec": "version: 1\n"}


def test_the_own_cgroup_is_the_kernels() -> None:
    cgroup = own_cgroup_procs()
    if cgroup is None:
        assert not os.access("/sys/fs/cgroup/cgroup.procs", os.W_OK)
        return
    path = Path(f"/proc/self/fd/{cgroup}").readlink()
    os.close(cgroup)
    assert str(os.getpid()) in path.read_text().split()


@pytest.mark.parametrize(
    ("count", "hint"),
    [(0, "has none"), (1, "has {fd:0} alone"), (2, "has {fd:0} to {fd:1}")],
)
def test_a_descriptor_that_there_is_not(
    stub: Stub, memfds: tuple[int, int], count: int, hint: str
) -> None:
    stub.on("Acquire", Answer(ACQUIRED, memfds[:count]))
    code, _, errors = ran(stub, "a", "--", "echo", "{fd:9}")
    assert code == 2
    assert errors.splitlines() == [
        "gmemd: {fd:9}: there is no such file descriptor",
        f"hint: the VM's memory {hint}",
    ]


def test_other_braces_stay(stub: Stub) -> None:
    stub.on("Acquire", Answer(ACQUIRED))
    words = ("{fd:x}", '{"driver": "raw"}', "{0}", "--", "--help")
    assert ran(stub, "a", "--", "echo", *words)[1] == " ".join(words) + "\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a"], "required: CMD"),
        (["a", "--"], "CMD"),
        (["a", "--", "/no/such/program"], "there is no program '/no/such/program'"),
        (["a", "--timeout", "soon", "--", "true"], "must be a time in seconds, not soon"),
        (["a", "--timeout", "-1", "--", "true"], "argument --timeout"),
        (["a", "--timeout=nan", "--", "true"], "must be a time in seconds, not nan"),
        (["a", "--spec", "/no/such/spec", "--", "true"], "reading /no/such/spec: No such file"),
    ],
)
def test_wrong_usage_asks_for_no_memory(
    stub: Stub, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["run", "--socket", str(stub.path), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert stub.calls == []


def test_a_program_that_is_none(stub: Stub, tmp_path: Path) -> None:
    stub.on("Acquire", Answer(ACQUIRED))
    program = tmp_path / "program"
    program.write_text("no program\n")
    program.chmod(0o755)
    code, _, errors = ran(stub, "a", "--", str(program))
    assert (code, errors) == (2, f"gmemd: running {program}: Exec format error\n")


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (
            Answer(
                {"vm": "a", "timeout_ms": 5, "state": "failed", "progress_ratio": None},
                error="Timeout",
            ),
            3,
            "not there after 0.005 s: failed",
        ),
        (
            Answer(
                {"vm": "a", "refusals": [], "message": "node 0 is full", "hint": "use another"},
                error="DoesNotFit",
            ),
            3,
            "Acquire a: node 0 is full\nhint: use another",
        ),
        (Answer({"vm": "a"}, error="NoSuchVM"), 2, "the daemon knows no VM named 'a'"),
        (Answer(error="org.varlink.service.PermissionDenied"), 6, "Acquire: not permitted"),
        (
            Answer(
                {
                    "problems": [
                        {
                            "file": "",
                            "line": 3,
                            "column": 5,
                            "key": "memory",
                            "value": "16G",
                            "message": "must have an IEC unit",
                            "hint": "write 16GiB",
                        }
                    ]
                },
                error="BadSpec",
            ),
            2,
            "spec isn't accepted\n  3:5: memory: must have an IEC unit (got 16G)\n  hint: write",
        ),
    ],
)
def test_why_there_is_no_memory(
    stub: Stub, capsys: pytest.CaptureFixture[str], answer: Answer, code: int, said: str
) -> None:
    stub.on("Acquire", answer)
    assert main(["run", "--socket", str(stub.path), "a", "--", "true"]) == code
    assert said in capsys.readouterr().err
