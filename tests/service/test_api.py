"""The API as others use it: the real varlinkctl, and processes of other units and other users."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from gmemd.daemon.varlink.api import interface_text
from tests.service import unit
from tests.service.caller import calling

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from tests.service.caller import Caller

SPEC = """\
version: 1
vm: {vm}
source: {source}
{more}guest_nodes:
  - {{id: 0, memory: 8MiB, host_nodes: 0, policy: bind}}
  - {{id: 1, memory: 8MiB, host_nodes: 1, policy: bind}}
"""
OWNED = "owner: {unit: vmm-01.service}\n"
LAZY = "prefault: false\n"
NAMES = {"owned", "theirs", "registered", "adopted"}
SEPARATOR = "\x1e"
DENIED = "org.varlink.service.PermissionDenied"


@pytest.fixture(scope="module", autouse=True)
def service() -> Iterator[None]:
    unit.install()
    unit.clear_specs()
    for vm, source, more in (
        ("owned", "create", OWNED + LAZY),
        ("theirs", "create", LAZY),
        ("registered", "register", OWNED),
        ("adopted", "adopt", "backend: memfd\n" + OWNED),
    ):
        (unit.SPECS / f"{vm}.yaml").write_text(SPEC.format(vm=vm, source=source, more=more))
    unit.start()
    for vm in ("owned", "theirs"):
        unit.wait_for(vm, "ready")
    yield
    unit.stop()
    unit.clear_specs()


def varlinkctl(method: str, *options: str, **parameters: object) -> list[dict[str, Any]]:
    """All replies to a call."""
    done = call(method, *options, **parameters)
    assert done.returncode == 0, done.stderr
    return replies(done)


def replies(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """A JSON text sequence (RFC 7464): what streams is marked off by record separators."""
    return [json.loads(line.lstrip(SEPARATOR)) for line in done.stdout.rstrip("\n").split("\n")]


def refused(method: str, **parameters: object) -> tuple[str, dict[str, Any]]:
    """The error that a call ends in: its name and its parameters."""
    done = call(method, **parameters)
    assert done.returncode != 0, done.stdout
    found = re.search(r"failed: (\S+)", done.stderr)
    assert found is not None, done.stderr
    return found[1], json.loads(done.stdout)


def call(method: str, *options: str, **parameters: object) -> subprocess.CompletedProcess[str]:
    where = ("call", str(unit.SOCKET), f"io.gmemd.{method}", json.dumps(parameters))
    return unit.run("varlinkctl", "--json=short", *options, *where)


def test_varlinkctl_reads_the_interface() -> None:
    shown = unit.must("varlinkctl", "introspect", str(unit.SOCKET), "io.gmemd")
    for kind in ("method", "error", "type"):
        declared = re.findall(rf"^{kind} (\w+)", interface_text(), re.MULTILINE)
        assert re.findall(rf"^{kind} (\w+)", shown, re.MULTILINE) == declared


def test_varlinkctl_calls_what_answers_once() -> None:
    (listed,) = varlinkctl("List")
    assert {vm["vm"] for vm in listed["vms"]} == NAMES
    (described,) = varlinkctl("Describe", vm="owned")
    assert described["vm"]["state"] == "ready"
    (planned,) = varlinkctl("Plan", vm="theirs")
    assert (planned["verdict"], len(planned["regions"])) == ("placed", 2)
    spec = SPEC.format(vm="new", source="create", more="")
    (planned,) = varlinkctl("Plan", spec=spec)
    assert (planned["vm"], planned["verdict"]) == ("new", "fits")
    (reloaded,) = varlinkctl("Reload")
    assert (reloaded["successful"], reloaded["unchanged"]) == (True, len(NAMES))
    (released,) = varlinkctl("Release", vm="theirs")
    assert released == {"vm": "theirs", "state": "waiting"}


def test_varlinkctl_gets_errors_as_they_are_typed() -> None:
    assert refused("Describe", vm="nobody") == ("io.gmemd.NoSuchVM", {"vm": "nobody"})
    name, told = refused("Adopt", vm="adopted")
    assert (name, told["vm"], told["state"]) == ("io.gmemd.NotReady", "adopted", "waiting")
    name, told = refused("Register", vm="owned", regions=[])
    assert (name, told["guest_node"]) == ("io.gmemd.LayoutMismatch", None)
    wanted = [{"guest_node": 0, "fd_index": 0, "offset": 0, "size": 8 << 20}]
    name, told = refused("Register", vm="registered", regions=wanted)
    assert (name, told["index"]) == ("io.gmemd.FdRejected", 0)
    name, told = refused("Handover", vm="owned", holder=0)
    assert (name, told["index"]) == ("io.gmemd.FdRejected", 0)
    name, told = refused("Plan", spec="version: 1\nvm: bad\n")
    assert name == "io.gmemd.BadSpec"
    assert "guest_nodes" in {problem["key"] for problem in told["problems"]}
    huge = SPEC.format(vm="huge", source="create", more="").replace("8MiB", "8TiB")
    name, told = refused("Acquire", vm="huge", spec=huge)
    assert (name, told["vm"]) == ("io.gmemd.DoesNotFit", "huge")
    name, told = refused("Describe", nm="owned")
    assert (name, told) == ("org.varlink.service.InvalidParameter", {"parameter": "vm"})


def test_varlinkctl_streams() -> None:
    *told, last = varlinkctl("Audit", "--more", vm="owned")
    assert all(reply["looked_at"] <= reply["total"] for reply in told)
    assert (last["vm"]["vm"], last["vm"]["drifting"]) == ("owned", False)
    *told, last = varlinkctl("Acquire", "--more", vm="theirs")
    assert told
    assert {tuple(reply[key] for key in ("vm", "regions")) for reply in told} == {("theirs", None)}
    assert [region["fd_index"] for region in last["regions"]] == [0, 1]
    assert (
        unit.wait_for("theirs", "waiting")["holder"] is None
    )  # it exited, and had been the holder
    watched = call("Watch", "--more", "--timeout=5")
    assert "TimedOut" in watched.stderr
    seen = {told["vm"]: told["status"] for told in replies(watched)}
    assert seen.keys() == NAMES
    assert seen["theirs"]["state"] == "waiting"
    once = call("Watch")
    assert "org.varlink.service.ExpectedMore" in once.stderr


@pytest.fixture(scope="module")
def owner() -> Iterator[Caller]:
    with calling("vmm-01", "nobody") as caller:
        yield caller


def test_the_owners_unit_gets_its_memory_and_no_more(owner: Caller) -> None:
    acquired = owner.call("Acquire", vm="owned")
    assert (acquired.error, acquired.fds) == ("", 2)
    held = unit.vms()["owned"]["holder"]
    assert held["unit"] == "vmm-01.service"
    for method in ("Describe", "Audit", "Watch"):
        assert owner.call(method, vm="owned")[0::2] == ("", 0)
    assert owner.call("Register", vm="registered", regions=[])[0::2] == ("", 0)
    told = {vm["vm"]: vm["public"] for vm in owner.call("List").parameters["vms"]}
    assert told == {"owned": False, "registered": False, "adopted": False, "theirs": True}
    spec = SPEC.format(vm="new", source="create", more="")
    for method, parameters in (
        ("Acquire", {"vm": "theirs"}),
        ("Acquire", {"vm": "new", "spec": spec}),
        ("Plan", {"vm": "owned"}),
        ("Adopt", {"vm": "adopted"}),
        ("Reload", {}),
    ):
        assert owner.call(method, **parameters)[0::2] == (DENIED, 0)


@pytest.mark.parametrize("user", ["nobody", "daemon"])
def test_of_another_unit_or_user_nothing_is_had(owner: Caller, user: str) -> None:
    assert owner.call("Acquire", vm="owned").fds == 2
    spec = SPEC.format(vm="new", source="create", more=OWNED)
    register = {"regions": [{"guest_node": 0, "fd_index": 0, "offset": 0, "size": 8 << 20}]}
    with calling(f"vmm-{user}", user) as stranger:
        for method, parameters in (
            ("Acquire", {}),
            ("Acquire", {"holder": 0}),
            ("Acquire", {"spec": spec}),
            ("Register", register),
            ("Register", register | {"spec": spec}),
            ("Handover", {"holder": 0}),
            ("Release", {}),
            ("Release", {"force": True}),
            ("Describe", {}),
            ("Audit", {}),
            ("Watch", {}),
            ("Adopt", {}),
            ("Plan", {}),
        ):
            for vm in ("owned", "registered", "adopted", "theirs"):
                assert stranger.call(method, vm=vm, **parameters)[0::2] == (DENIED, 0)
        assert stranger.call("Plan", spec=spec)[0::2] == (DENIED, 0)
        assert stranger.call("Reload")[0::2] == (DENIED, 0)
        listed = stranger.call("List")
    assert listed.fds == 0
    assert {vm["vm"] for vm in listed.parameters["vms"]} == NAMES
    for vm in listed.parameters["vms"]:
        known = {key for key, value in vm.items() if value not in (None, [], "", False, 0)}
        assert known == {"version", "vm", "source", "state", "since", "public"}
    assert unit.vms()["owned"]["holder"]["unit"] == "vmm-01.service"
