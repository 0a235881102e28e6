"""The interface as it is checked in, as it is served, and as the JSON is."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from asyncvarlink import VarlinkInterface
from asyncvarlink.conversion import VarlinkType

from gmemd.client.blocking import CallError, RefusedError, call
from gmemd.daemon.varlink import server
from gmemd.daemon.varlink.api import GmemdInterface, interface_text
from gmemd.daemon.varlink.interface import HostNode, ListResult, Vm
from gmemd.daemon.varlink.peer import Peer
from gmemd.export.snapshot import Snapshot
from gmemd.export.snapshot_json import snapshot_to_json, vm_to_json
from tests.unit.daemon.vms import audited_status, host

if TYPE_CHECKING:
    from tests.unit.daemon.conftest import Api


def tokens(description: str) -> list[str]:
    """Words and signs, without comments."""
    return re.findall(r"[A-Za-z0-9_.]+|->|\S", re.sub(r"#.*", "", description))


def statements(description: str) -> set[str]:
    """The description's statements, whatever their order."""
    whole = " ".join(tokens(description))
    return set(re.split(r" (?=(?:type|method|error) [A-Z])", whole))


def test_the_text_is_what_the_code_does() -> None:
    generated = VarlinkInterface.render_interface_description.__func__(  # type: ignore[attr-defined]
        GmemdInterface, comments=False
    )
    assert statements(interface_text()) == statements(generated)


def test_every_statement_is_explained() -> None:
    lines = interface_text().splitlines()
    for above, line in pairwise(lines):
        if re.match(r"interface|type|method|error", line):
            assert above.startswith("# "), line


def test_no_name_stands_for_two_things() -> None:
    names = re.findall(r"^(?:type|method|error) (\w+)", interface_text(), re.MULTILINE)
    assert len(names) == len(set(names))


def test_the_text_is_what_introspection_gives(api: Api) -> None:
    with api.connect() as connection:
        connection.sendall(
            b'{"method": "org.varlink.service.GetInterfaceDescription",'
            b' "parameters": {"interface": "io.gmemd"}}\0'
        )
        received = b""
        while not received.endswith(b"\0"):
            received += connection.recv(1 << 16)
    assert b"# A kernel memory policy as it was read back" in received


def test_all_json_of_a_vm_fits_the_interface() -> None:
    kind = VarlinkType.from_type_annotation(Vm)
    status = audited_status()
    for told in (status, replace(status, audit=None, drift=None), replace(status, regions=())):
        json = vm_to_json(told)
        assert kind.tojson(kind.fromjson(json)) == json


def test_all_json_of_a_host_node_fits_the_interface() -> None:
    kind = VarlinkType.from_type_annotation(HostNode)
    (node,) = snapshot_to_json(Snapshot("0", 0.0, host=host()))["host_nodes"]
    assert kind.tojson(kind.fromjson(node)) == node


def test_list_and_describe_agree(api: Api) -> None:
    listed = call(api.path, "List")
    assert VarlinkType.from_type_annotation(ListResult).fromjson(listed)
    assert listed["vms"] == [call(api.path, "Describe", vm="idle")["vm"]]


def test_errors_carry_their_parameters(api: Api) -> None:
    with pytest.raises(CallError, match="no memory") as refused:
        call(api.path, "Audit", vm="idle")
    assert refused.value.parameters == {"vm": "idle", "state": "waiting", "message": "no memory"}
    with pytest.raises(CallError, match="nothing to read") as failed:
        call(api.path, "Reload")
    assert failed.value.hint == "write something"


@pytest.mark.parametrize(("method", "parameters"), [("Reload", {}), ("Audit", {"vm": "idle"})])
def test_strangers_may_not_act(
    api: Api, monkeypatch: pytest.MonkeyPatch, method: str, parameters: dict[str, str]
) -> None:
    stranger = Peer(1, os.geteuid() + 1, 0)
    monkeypatch.setattr(server, "peer_of", lambda _: stranger)
    assert call(api.path, "List")["vms"]
    with pytest.raises(RefusedError):
        call(api.path, method, **parameters)
