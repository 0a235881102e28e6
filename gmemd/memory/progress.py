"""How far a VM's provisioning is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """What is being done."""

    CREATING = "creating"
    PREFAULTING = "prefaulting"


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes prefaulted of all that will be, over the VM's regions."""

    vm: str
    stage: Stage
    allocated_bytes: int
    total_bytes: int

    @property
    def ratio(self) -> float:
        """From 0 to 1; 1 where nothing is prefaulted."""
        return self.allocated_bytes / self.total_bytes if self.total_bytes else 1.0
