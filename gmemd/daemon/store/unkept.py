"""What keeps memory past the daemon's life, as its other parts see it; and its absence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gmemd.daemon.vm import ManagedVm
    from gmemd.export.snapshot import Kept


class Keeping(Protocol):
    """What a fleet's memory is kept by."""

    @property
    def kept(self) -> Kept | None:
        """How the store stands; None where there is none."""

    async def secure(self) -> None:
        """Return once all that VMs have now is written down, and is in the store."""

    async def finish(self) -> None:
        """Do so for the last time: what is closed from then on stays as it was."""

    def keeps(self, vm: ManagedVm) -> bool:
        """Whether all of a VM's memory outlives this process."""


class Unkept:
    """Nothing is kept: memory ends with the daemon, or with its last holder."""

    kept: Kept | None = None

    async def secure(self) -> None:
        """Return at once."""

    async def finish(self) -> None:
        """Return at once."""

    def keeps(self, vm: ManagedVm) -> bool:
        """It doesn't."""
        del vm
        return False
