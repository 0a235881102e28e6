from __future__ import annotations

from pathlib import Path

from gmemd.daemon.desired import Desired
from gmemd.daemon.reloading import config_notes, report, summary
from gmemd.spec.config import DaemonConfig, MetricsConfig
from gmemd.spec.model import PolicyMode, VmSpec
from gmemd.spec.problems import Problem
from tests.unit.daemon.vms import MIB, spec

BIG = {"size_bytes": 64 * MIB}


def desired(*specs: VmSpec, broken: dict[str, Problem] | None = None) -> Desired:
    problems = broken or {}
    return Desired({s.vm: s for s in specs}, problems, tuple(problems.values()))


def test_what_came_went_changed_and_waits() -> None:
    before = desired(spec("goes"), spec("stays"), spec("grows"), spec("moves"))
    after = desired(
        spec("stays"), spec("grows", **BIG), spec("moves", policy=PolicyMode.LOCAL), spec("comes")
    )
    result = report(before, after, before.specs, [])
    assert result["added"] == ["comes"]
    assert result["removed"] == ["goes"]
    assert result["pending"] == ["grows"]
    assert result["changed"] == ["moves"]
    assert result["unchanged"] == 1
    assert result["successful"]
    assert summary(result) == "1 added, 1 changed, 1 removed, 1 unchanged, 1 pending"


def test_without_memory_another_size_is_just_a_change() -> None:
    result = report(desired(spec("vm")), desired(spec("vm", **BIG)), {}, [])
    assert (result["changed"], result["pending"]) == (["vm"], [])


def test_taking_a_pending_change_back_is_no_change() -> None:
    result = report(desired(spec("vm", **BIG)), desired(spec("vm")), {"vm": spec("vm")}, [])
    assert (result["changed"], result["pending"], result["unchanged"]) == ([], [], 1)


def test_broken_files_make_it_unsuccessful() -> None:
    problem = Problem("/v/b.yaml", 3, 1, "memory", "lots", "must be a size", "write 8MiB")
    result = report(desired(), desired(broken={"b": problem}), {}, [])
    assert not result["successful"]
    assert result["problems"][0].line == 3
    assert summary(result).endswith("1 file broken")


def test_a_file_that_another_one_stands_before_is_noted() -> None:
    after = Desired(shadowed=((Path("/run/vms.d/a.yaml"), Path("/etc/vms.d/a.yaml")),))
    notes = report(Desired(), after, {}, ["first"])["notes"]
    assert notes == ["first", "/run/vms.d/a.yaml isn't read: /etc/vms.d/a.yaml is VM a"]


def test_what_takes_a_restart_is_noted() -> None:
    old = DaemonConfig()
    metrics = MetricsConfig(listen=("[::1]:1",), web_config=Path("/etc/web.yaml"))
    new = DaemonConfig(socket=Path("/run/x"), state_directory=Path("/run/y"), metrics=metrics)
    assert config_notes(old, old) == []
    assert config_notes(old, new) == [
        "socket changed: restart gmemd for it",
        "state_directory changed: restart gmemd for it",
        "metrics: listen changed: restart gmemd for it",
        "metrics: web_config changed: restart gmemd for it",
    ]
