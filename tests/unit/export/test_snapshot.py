from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from asyncvarlink.conversion import VarlinkType

from gmemd.audit.model import Cell, MisplacedRange, Stretch, Where
from gmemd.daemon.varlink.interface import Vm
from gmemd.export.snapshot_json import snapshot_to_json, vm_to_json

if TYPE_CHECKING:
    from gmemd.export.snapshot import Snapshot, VmStatus

MIB = 1 << 20


def test_json_survives_a_round_trip(snapshot: Snapshot) -> None:
    shown = snapshot_to_json(snapshot)
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown
    assert shown["version"] == 1


def test_every_vm_is_listed_in_order(snapshot: Snapshot) -> None:
    names = [vm["vm"] for vm in snapshot_to_json(snapshot)["vms"]]
    assert names == ["web-01", "db-01", "late", "broken"]


def test_a_drifting_vm_says_where_its_bytes_are_and_why(drifting: VmStatus) -> None:
    shown = vm_to_json(drifting)
    assert shown["version"] == 1
    assert shown["drifting"] is True
    node = shown["guest_nodes"][0]
    assert node["memory"] == 256 * MIB
    assert node["drift"]["by_node"] == {"1": 192 * MIB, "2": 64 * MIB}
    assert node["drift"]["misplaced"] == 64 * MIB
    assert node["drift"]["host_nodes_allowed"] == [1]
    assert node["drift"]["cause"] == "spilled"
    assert node["drift"]["remedy"] == "make room on host node 1"


def test_regions_use_the_specs_words(drifting: VmStatus) -> None:
    region = vm_to_json(drifting)["guest_nodes"][0]["regions"][0]
    assert region["size"] == 256 * MIB
    assert region["policy"] == "preferred"
    assert region["host_nodes"] == [1]
    assert region["backend"] == "guest_memfd"
    assert region["strategy"] == "proxy-allocation"
    assert region["strategy_planned"] == "inode-policy"
    assert region["reason"] == "flags=0"
    assert region["policy_read"] == {"mode": "preferred", "host_nodes": [1]}


def test_what_is_not_known_is_null(waiting: VmStatus) -> None:
    shown = vm_to_json(waiting)
    assert shown["drifting"] is None
    assert shown["audit"] is None
    assert shown["guest_nodes"][0]["drift"] is None
    assert shown["guest_nodes"][0]["memory"] == 256 * MIB
    assert shown["guest_nodes"][0]["regions"][0]["resident"] is None


def test_a_vm_known_only_by_a_broken_file(broken: VmStatus) -> None:
    shown = vm_to_json(broken)
    assert (shown["source"], shown["spec_error"], shown["guest_nodes"]) == (None, True, [])


def test_audit_errors_are_summed_over_regions(placed: VmStatus) -> None:
    assert placed.audit is not None
    twice = replace(placed, audit=replace(placed.audit, regions=placed.audit.regions * 2))
    assert vm_to_json(twice)["audit"]["errors"] == {"poisoned": 4}


def test_host_nodes_carry_what_is_committed(snapshot: Snapshot) -> None:
    nodes = {node["id"]: node for node in snapshot_to_json(snapshot)["host_nodes"]}
    assert nodes[1]["committed"] == 64 * MIB
    assert nodes[0]["committed"] == 0


def test_no_host_yet(snapshot: Snapshot) -> None:
    assert snapshot_to_json(replace(snapshot, host=None))["host_nodes"] == []


def test_where_counts_from_the_guest_nodes_start(placed: VmStatus) -> None:
    """Regions of a guest node follow upon each other."""
    assert placed.audit is not None
    node = placed.guest_nodes[0]
    (status,) = placed.regions_of(node)
    size = status.plan.size_bytes
    where = Where(
        stretches=(Stretch(0, size, size, (Cell({0: 5 * MIB, 2: MIB}, MIB, 4096),), gpa=1 << 32),),
        misplaced=(MisplacedRange(MIB, 2 * MIB, {2: MIB}, gpa=(1 << 32) + MIB),),
        more=3,
        more_bytes=4 * 4096,
    )
    seen = next(region for region in placed.audit.regions if region.guest_node == node)
    regions = (seen, replace(seen, index=1, where=where))
    vm = replace(
        placed,
        regions=(status, replace(status, plan=replace(status.plan, index=1))),
        audit=replace(placed.audit, regions=regions),
    )
    first, second = vm_to_json(vm)["guest_nodes"][0]["regions"]
    assert first["where"] is None
    assert second["where"] == {
        "stretches": [
            {
                "gpa": 1 << 32,
                "offset": size,
                "size": size,
                "cell_size": size,
                "cells": [{"by_node": {"0": 5 * MIB, "2": MIB}, "misplaced": MIB, "unknown": 4096}],
            }
        ],
        "misplaced": [
            {
                "gpa": (1 << 32) + MIB,
                "offset": size + MIB,
                "size": 2 * MIB,
                "misplaced": MIB,
                "by_node": {"2": MIB},
            }
        ],
        "more": 3,
        "more_bytes": 4 * 4096,
    }
    kind = VarlinkType.from_type_annotation(Vm)
    assert kind.tojson(kind.fromjson(vm_to_json(vm))) == vm_to_json(vm)
