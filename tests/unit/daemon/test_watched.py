"""What is published of a VM that was found running, and of a spec that has none."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from gmemd.daemon.desired import Desired
from gmemd.daemon.observing import Found, FoundVm
from gmemd.daemon.watched import (
    Wanted,
    Watched,
    in_a_daemons_words,
    remedy,
    same_process,
    wanted,
    why_waiting,
)
from gmemd.export.snapshot import VmState
from gmemd.host.vms.finding import to_see_it
from gmemd.host.vms.model import VmmProcess
from gmemd.spec.config import AuditConfig, DaemonConfig
from gmemd.spec.declared import Declaration
from gmemd.spec.model import Match, Source, VmSpec
from gmemd.spec.problems import Problem
from tests.unit.daemon.vms import audited_status, spec


def found_vm(name: str, pid: int, *, unit: str = "", spec: VmSpec | None = None) -> FoundVm:
    vmm = VmmProcess(
        pid=pid,
        start_ticks=pid * 100,
        started_timestamp=5.0,
        program="qemu-system-x86_64",
        argv=("qemu-system-x86_64", "-name", name),
        kvm=True,
        cgroup="/",
        unit=unit,
        mems=frozenset({0}),
    )
    return FoundVm(name, vmm, Declaration(vmm="qemu", name=name), spec)


def observed(name: str = "db-01", **match: str) -> VmSpec:
    return spec(name).model_copy(
        update={"source": Source.OBSERVE, "match": Match(**match) if match else None}
    )


@pytest.mark.parametrize(
    ("match", "words"),
    [
        ({"qemu_name": "db"}, "qemu_name=db"),
        ({"unit": "db.service"}, "unit=db.service"),
        ({"cgroup": "/machine.slice/db"}, "cgroup=/machine.slice/db"),
        ({"pidfile": "/run/no-such-file"}, "pidfile=/run/no-such-file"),
        ({}, "name=db-01"),
    ],
)
def test_what_no_vm_matches_is_named(match: dict[str, str], words: str) -> None:
    told = why_waiting(observed(**match), Found((found_vm("other", 7),)))
    assert told == (f"no running VM matches {words}", "")


def test_it_may_be_among_the_processes_that_were_not_seen() -> None:
    _, hint = why_waiting(observed(qemu_name="db"), Found((), unseen_processes=3))
    assert hint == remedy()


def test_several_that_match_are_told_apart_by_pid() -> None:
    found = Found((found_vm("db@7", 7, unit="a.service"), found_vm("db@9", 9, unit="a.service")))
    message, hint = why_waiting(observed(unit="a.service"), found)
    assert message == "2 running VMs match unit=a.service: pids 7, 9"
    assert hint


def test_a_vm_that_another_spec_has_is_said_to_be_its() -> None:
    taken = found_vm("first", 7, unit="a.service", spec=observed("first", unit="a.service"))
    message, _ = why_waiting(observed("second", unit="a.service"), Found((taken,)))
    assert message == "the VM that matches unit=a.service, pid 7, is that of the spec first"
    assert why_waiting(observed("first", unit="a.service"), Found((taken,))) == ("", "")


def test_only_observed_specs_are_looked_for_and_all_other_names_are_taken() -> None:
    desired = Desired(
        {"made": spec("made"), "seen": observed("seen")},
        {"bad": Problem("bad.yaml", 1, 1, "", None, "is broken")},
    )
    config = DaemonConfig(discovery=False, audit=AuditConfig(interval_seconds=5, sample_pages=64))
    assert wanted(config, desired) == Wanted(
        discovery=False,
        interval_seconds=5,
        sample_pages=64,
        specs=(observed("seen"),),
        taken=frozenset({"made", "bad"}),
    )


def test_a_process_is_another_once_its_pid_was_given_again_or_it_became_another_program() -> None:
    vm = found_vm("db", 7)
    assert same_process(vm, found_vm("db", 7))
    assert not same_process(vm, replace(vm, vmm=replace(vm.vmm, start_ticks=1)))
    assert not same_process(vm, replace(vm, vmm=replace(vm.vmm, argv=("firecracker",))))


def test_nothing_is_told_before_the_first_look() -> None:
    assert Watched(found_vm("db", 7)).status is None


def test_a_look_that_failed_leaves_what_was_seen_before() -> None:
    vm = Watched(found_vm("db", 7), failure="no reason")
    assert vm.status is not None
    assert (vm.status.state, vm.status.source) == (VmState.FAILED, Source.OBSERVE)
    assert vm.status.running is not None
    assert (vm.status.running.pid, vm.status.running.unknown) == (7, "unreadable")
    vm.seen = replace(audited_status(), warnings=("as before",))
    assert vm.status == replace(vm.seen, warnings=("the last audit failed: no reason", "as before"))


def test_a_name_in_the_log_is_one_line() -> None:
    assert "\n" not in Watched(found_vm("a\nb", 7)).name


def test_a_service_is_told_of_the_drop_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 997)
    seen = replace(
        audited_status(), hint=to_see_it(), warnings=(f"not seen ({to_see_it()})", "other")
    )
    told = in_a_daemons_words(seen)
    assert "gmemd.service.d/observe.conf" in told.hint
    assert told.warnings == (f"not seen ({told.hint})", "other")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    seen = replace(seen, hint=to_see_it())
    assert in_a_daemons_words(seen).hint == to_see_it()
