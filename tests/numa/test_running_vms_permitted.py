"""What `gmemd audit --all` sees with how much permission, and what it says that it would need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.numa import forbidden
from tests.numa.running import MIB, Audited, Vm, block, by_node, gmemd_audit, started

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.qemu import Qemu

NOBODY, STRANGER = 65534, 65533
SEEN = {"roots": {1: 32 * MIB}, "nobodys": {2: 32 * MIB}}
"""Bytes per host node of each VM."""

AS_USER = "run gmemd as root, or give it CAP_SYS_PTRACE"
AS_ROOT = (
    "gmemd is root here and lacks CAP_SYS_PTRACE, or a security module or a container's limits "
    "forbid it"
)


def user(uid: int, *more: str) -> tuple[str, ...]:
    return ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *more)


def without_calls(*calls: str) -> tuple[str, ...]:
    """In a container whose seccomp profile forbids these."""
    return (sys.executable, str(Path(forbidden.__file__)), ",".join(calls))


def with_proc(options: str, *then: str) -> tuple[str, ...]:
    """With a /proc of its own, mounted with those options."""
    mount = f'mount -t proc -o {options} proc /proc && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", mount, "sh", *then)


WITHOUT_PTRACE = ("setpriv", "--inh-caps=-sys_ptrace", "--bounding-set=-sys_ptrace")
PTRACE_ALONE = user(STRANGER, "--inh-caps=+sys_ptrace", "--ambient-caps=+sys_ptrace")


@pytest.fixture(scope="module")
def qemus() -> Iterator[dict[str, Qemu]]:
    roots = Vm("roots", "kvm", (block("r0", 32, "bind", 1),))
    theirs = (block("f0", 32, "bind", 2, kind="memfd"),)
    nobodys = Vm("nobodys", "tcg", theirs, prefix=user(NOBODY))
    with started([roots, nobodys]) as running:
        yield running


def seen(audited: Audited) -> dict[str, dict[int, int]]:
    """Bytes per host node of the VMs whose memory was seen."""
    return {
        name: by_node(vm["guest_nodes"][0]["drift"]["by_node"])
        for name, vm in audited.vms.items()
        if vm["audit"] is not None
    }


def unseen(audited: Audited) -> dict[str, Any]:
    """The VMs whose memory wasn't seen: all of them say that it was for want of permission."""
    found = {name: vm for name, vm in audited.vms.items() if vm["audit"] is None}
    for vm in found.values():
        assert vm["state"] == "waiting"
        assert vm["running"]["unknown"] == "not_permitted"
        assert vm["message"].startswith("memory unknown: ")
    return found


@pytest.mark.parametrize("prefix", [(), PTRACE_ALONE], ids=["root", "CAP_SYS_PTRACE alone"])
def test_who_sees_all(qemus: dict[str, Qemu], prefix: Sequence[str]) -> None:
    audited = gmemd_audit("--all", "--full", "--json", prefix=prefix)
    assert audited.exit_code == 0
    assert seen(audited) == SEEN
    assert audited.report["unseen_processes"] == 0
    for name, vm in audited.vms.items():
        assert vm["running"]["pid"] == qemus[name].pid
        assert vm["running"]["kvm"] is (name == "roots")
        assert not vm["drifting"]
        assert vm["guest_nodes"][0]["drift"]["policy_match"] is True


def test_a_user_sees_what_is_its_own(qemus: dict[str, Qemu]) -> None:
    audited = gmemd_audit("--all", "--full", "--json", prefix=user(NOBODY))
    assert audited.exit_code == 5
    assert seen(audited) == {"nobodys": SEEN["nobodys"]}
    (vm,) = unseen(audited).values()
    assert vm["message"] == (
        f"memory unknown: not permitted to look into pid {qemus['roots'].pid}, which runs as root"
    )
    assert vm["hint"] == AS_USER
    assert vm["running"]["kvm"] is None
    assert audited.report["unseen_processes"] > 0


@pytest.mark.parametrize(
    ("prefix", "hint"),
    [(user(STRANGER), AS_USER), (WITHOUT_PTRACE, AS_ROOT)],
    ids=["a stranger", "root without CAP_SYS_PTRACE"],
)
def test_who_sees_that_they_are_there_alone(
    qemus: dict[str, Qemu], prefix: Sequence[str], hint: str
) -> None:
    audited = gmemd_audit("--all", "--json", prefix=prefix)
    assert audited.exit_code == 6
    for name, vm in unseen(audited).items():
        owner = "root" if name == "roots" else "nobody"
        assert vm["message"].endswith(f"pid {qemus[name].pid}, which runs as {owner}")
        assert vm["hint"] == hint
    assert set(audited.vms) == set(qemus)
    text = gmemd_audit("--all", prefix=prefix)
    assert text.exit_code == 6
    assert text.stdout.count(f"  hint: {hint}\n") == 2
    lines = text.stdout.splitlines()
    assert lines[-2] == "2 VMs, 2 could not be seen"
    assert lines[-1].endswith(f"could not be looked into and may hold VMs: {hint}")


def test_a_container_without_ptrace_and_its_like(qemus: dict[str, Qemu]) -> None:
    """As a seccomp profile has it: which VMs there are is seen, their memory isn't."""
    calls = tuple(forbidden.NUMBERS)
    audited = gmemd_audit("--all", "--json", prefix=without_calls(*calls))
    assert audited.exit_code == 6
    for name, vm in unseen(audited).items():
        assert vm["running"]["kvm"] is (name == "roots")
        assert vm["running"]["declared_by"] == "qemu command line"
        assert vm["message"].startswith("memory unknown: move_pages: EPERM")
        assert vm["hint"].startswith("a seccomp filter forbids move_pages ")
        (region,) = vm["guest_nodes"][0]["regions"]
        assert region["host_nodes"] == list(SEEN[name])
    assert set(audited.vms) == set(qemus)
    text = gmemd_audit("--all", prefix=without_calls(*calls)).stdout
    assert "why: memory unknown: move_pages: EPERM (Operation not permitted)" in text
    one = gmemd_audit("roots", prefix=without_calls(*calls))
    assert one.exit_code == 6


@pytest.mark.usefixtures("qemus")
def test_metrics_of_what_may_not_be_seen() -> None:
    audited = gmemd_audit("--all", "--format", "prometheus", prefix=user(NOBODY))
    assert audited.exit_code == 5
    subprocess.run(["promtool", "check", "metrics"], input=audited.stdout, text=True, check=True)
    unknown = 'gmemd_vm_memory_unknown{reason="not_permitted",vm="roots"} 1.0'
    assert [line for line in audited.stdout.splitlines() if "memory_unknown{" in line] == [unknown]
    assert 'gmemd_vm_info{source="observe",uuid="",vm="nobodys"} 1.0' in audited.stdout
    assert 'gmemd_guest_node_resident_bytes{guest_node="0",vm="roots"}' not in audited.stdout


@pytest.mark.usefixtures("qemus")
@pytest.mark.parametrize(
    ("prefix", "needed"),
    [
        (with_proc("hidepid=2", *user(STRANGER)), f"mounted with hidepid): {AS_USER}"),
        (("unshare", "--pid", "--fork", "--mount-proc"), "(docker run --pid=host, hostPID: true)"),
    ],
    ids=["hidepid=2", "PID namespace"],
)
def test_where_processes_are_hidden_it_says_so(prefix: Sequence[str], needed: str) -> None:
    text = gmemd_audit("--all", prefix=prefix)
    assert text.exit_code == 5
    found, hidden = text.stdout.splitlines()
    assert found == "no running VM was found"
    assert hidden.startswith("there may be more VMs: ")
    assert hidden.endswith(needed)
    as_json = gmemd_audit("--all", "--json", prefix=prefix)
    assert as_json.exit_code == 5
    assert as_json.report["hidden_processes"].endswith(needed)
    assert as_json.report["vms"] == []


@pytest.mark.usefixtures("qemus")
def test_where_proc_shows_no_more_than_pids() -> None:
    prefix = with_proc("hidepid=1", *user(STRANGER))
    audited = gmemd_audit("--all", "--json", prefix=prefix)
    assert audited.exit_code == 5
    assert audited.report["unseen_processes"] >= 2
    assert audited.report["vms"] == []


@pytest.mark.usefixtures("qemus")
def test_hidepid_hides_nothing_from_who_may_trace() -> None:
    prefix = with_proc("hidepid=2", *PTRACE_ALONE)
    audited = gmemd_audit("--all", "--full", "--json", prefix=prefix)
    assert audited.exit_code == 0
    assert seen(audited) == SEEN
