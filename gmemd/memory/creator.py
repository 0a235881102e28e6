"""guest_memfds made in a process of their own.

Every KVM VM registers an MMU notifier with the process that made it, and keeps it there until the
process is gone or all of the VM's guest_memfds are closed: 500 of them make a page's unmapping 75
times slower. A creator process makes one VM and the guest_memfds, sends these and exits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gmemd.memory import child
from gmemd.memory.errors import ProvisionError

if TYPE_CHECKING:
    from collections.abc import Sequence

# Making a guest_memfd allocates nothing of its memory; this is for a host in deep trouble.
_TIMEOUT_SECONDS = 30.0
_BATCH = 128


def create_guest_memfds(
    sizes: Sequence[int], *, flags: int, timeout_seconds: float = _TIMEOUT_SECONDS
) -> list[int]:
    """Make guest_memfds of one KVM VM, of these sizes (bytes) and flags (GUEST_MEMFD_*).

    The descriptors are close-on-exec, and the caller's to close. Raises KernelError as the creator
    met it, ProvisionError where the creator failed otherwise.
    """
    fds: list[int] = []
    try:
        with child.Child("gmemd.memory.creator_child") as creator:
            creator.channel.settimeout(timeout_seconds)
            for start in range(0, len(sizes), _BATCH):
                batch = list(sizes[start : start + _BATCH])
                fds += _request(creator, batch, flags)
            creator.channel.close()
            creator.end(grace_seconds=timeout_seconds)
    except BaseException:
        child.close_all(fds)
        raise
    return fds


def _request(creator: child.Child, sizes: list[int], flags: int) -> list[int]:
    """Have one batch made."""
    try:
        child.send(creator.channel, {"sizes": sizes, "flags": flags})
        answer, fds = child.receive(creator.channel)
    except child.TruncatedError as error:
        raise ProvisionError(
            f"a creator process made {len(sizes)} guest_memfds, and this process has no room for "
            "their file descriptors",
            reason="creator-failed",
            hint="raise the limit of open files (LimitNOFILE= of the unit)",
        ) from error
    except child.ChildError as error:
        creator.end(grace_seconds=0.5)
        said = creator.last_words()
        raise ProvisionError(
            f"the process that creates guest_memfds failed: {error}"
            + (f": {said}" if said else ""),
            reason="creator-failed",
        ) from error
    if "error" in answer:
        child.close_all(fds)
        raise child.error_from_message(answer["error"])
    if len(fds) != len(sizes):
        child.close_all(fds)
        raise ProvisionError(
            f"the process that creates guest_memfds sent {len(fds)} of {len(sizes)}",
            reason="creator-failed",
        )
    return fds
