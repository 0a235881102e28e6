"""The reply of List: hundreds of VMs as JSON, each encoded once for each status that it has."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING

from gmemd.export.snapshot_json import public_to_json, snapshot_to_json, vm_to_json

if TYPE_CHECKING:
    from collections.abc import Collection

    from gmemd.export.snapshot import Snapshot, VmStatus

ENCODER = json.JSONEncoder(separators=(",", ":"))


class Listing:
    """Encodes snapshots, in any number of threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._known: dict[str, tuple[VmStatus, str]] = {}

    async def encode(self, snapshot: Snapshot, usable: Collection[str] | None) -> bytes:
        """The parameters of the reply: all of VMs that are ``usable`` (None: all), else a little.

        It is done in a thread: the first time it takes as long as there are VMs.
        """
        return await asyncio.to_thread(self._encode, snapshot, usable)

    def _encode(self, snapshot: Snapshot, usable: Collection[str] | None) -> bytes:
        told = snapshot_to_json(replace(snapshot, vms=()))
        del told["vms"]
        with self._lock:
            there = {vm.vm for vm in snapshot.vms}
            self._known = {name: vm for name, vm in self._known.items() if name in there}
            vms = [
                self._vm(vm)
                if usable is None or vm.vm in usable
                else ENCODER.encode(public_to_json(vm))
                for vm in snapshot.vms
            ]
        return f'{ENCODER.encode(told)[:-1]},"vms":[{",".join(vms)}]}}'.encode()

    def _vm(self, vm: VmStatus) -> str:
        known = self._known.get(vm.vm)
        if known is None or known[0] is not vm:
            self._known[vm.vm] = known = vm, ENCODER.encode(vm_to_json(vm))
        return known[1]
