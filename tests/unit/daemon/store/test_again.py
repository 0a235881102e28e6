"""VMs as they were written down, in a fleet again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gmemd.daemon.lifecycle import Lifecycle
from gmemd.daemon.possession import Possession
from gmemd.daemon.store.again import have_again
from gmemd.daemon.store.recovery import Recovered, RecoveredVm
from gmemd.daemon.store.telling import record_of
from gmemd.export.snapshot import VmState
from tests.unit.daemon.store.test_telling import vm
from tests.unit.daemon.test_fleet import forget, new_fleet

if TYPE_CHECKING:
    from gmemd.daemon.store.records import VmRecord
    from gmemd.daemon.vm import ManagedVm


def again(record: VmRecord) -> ManagedVm:
    async def recover() -> ManagedVm:
        with new_fleet() as fleet:
            possession = Possession(fleet, Lifecycle(fleet, forget), fleet.tell)
            have_again(Recovered([RecoveredVm(record)]), fleet, possession)
            return fleet.vms[record.vm]

    return asyncio.run(recover())


def recorded(made: ManagedVm) -> VmRecord:
    record = record_of(made)
    assert record is not None
    return record


def test_what_was_about_to_be_given_back_is_given_back() -> None:
    made = vm("db-01")
    made.release_wanted = True
    assert again(recorded(made)).release_wanted


def test_a_state_that_nobody_knows_is_none() -> None:
    record = recorded(vm("db-01")).model_copy(update={"state": "levitating"})
    assert again(record).state is VmState.WAITING


def test_what_is_of_no_use_is_left_open_until_it_is_out_of_the_store() -> None:
    async def recover() -> list[int]:
        with new_fleet() as fleet:
            possession = Possession(fleet, Lifecycle(fleet, forget), fleet.tell)
            made = vm("db-01")
            found = RecoveredVm(recorded(made), regions=made.regions, lost=("another part",))
            recovered = Recovered([found])
            have_again(recovered, fleet, possession)
            assert not fleet.vms
            return recovered.leaving

    assert asyncio.run(recover()) == [5]
