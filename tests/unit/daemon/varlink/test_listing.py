"""List's reply is the snapshot's JSON, and each VM's is made once for each status."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gmemd.daemon.varlink import listing
from gmemd.daemon.varlink.listing import Listing
from gmemd.export.snapshot import Snapshot
from gmemd.export.snapshot_json import snapshot_to_json, vm_to_json
from tests.unit.daemon.vms import audited_status, host

if TYPE_CHECKING:
    from collections.abc import Collection

    import pytest

    from gmemd.export.snapshot import VmStatus

VMS = tuple(replace(audited_status(), vm=name) for name in ("a", 'b "\u00fc"', "c"))
SNAPSHOT = Snapshot("0", 0.0, host=host(), vms=VMS)


def told(listing: Listing, snapshot: Snapshot, usable: Collection[str] | None = None) -> Any:  # noqa: ANN401  JSON
    return json.loads(asyncio.run(listing.encode(snapshot, usable)))


def test_it_is_the_snapshot() -> None:
    assert told(Listing(), SNAPSHOT) == snapshot_to_json(SNAPSHOT)
    assert told(Listing(), replace(SNAPSHOT, vms=())) == snapshot_to_json(replace(SNAPSHOT, vms=()))


def test_what_root_was_told_is_told_to_nobody_else() -> None:
    ours = Listing()
    told(ours, SNAPSHOT)
    shown = told(ours, SNAPSHOT, {"a"})["vms"]
    assert [vm["public"] for vm in shown] == [False, True, True]
    assert shown[1]["guest_nodes"] == []


def test_only_vms_that_changed_are_encoded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []

    def noting(vm: VmStatus) -> dict[str, Any]:
        encoded.append(vm.vm)
        return vm_to_json(vm)

    monkeypatch.setattr(listing, "vm_to_json", noting)
    ours = Listing()
    told(ours, SNAPSHOT)
    encoded.clear()
    told(ours, replace(SNAPSHOT, taken_timestamp=1.0))
    assert encoded == []
    told(ours, replace(SNAPSHOT, vms=(VMS[0], replace(VMS[2], since=7.0))))
    assert encoded == ["c"]


def test_vms_that_are_gone_are_forgotten_whoever_asks() -> None:
    ours = Listing()
    for vm in VMS:
        told(ours, replace(SNAPSHOT, vms=(vm,)), {vm.vm})
    assert list(ours._known) == [VMS[-1].vm]
