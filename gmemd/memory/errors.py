"""Why a VM's memory could not be brought about."""

from __future__ import annotations

from gmemd.errors import Exit, GmemdError


class ProvisionError(GmemdError):
    """A VM's memory can't be had; all that was taken on the way has been given back.

    ``reason`` is one word for metrics: ``node-full``, ``pool-empty``, ``cgroup-full``,
    ``helper-killed``, ``helper-stuck``, ``helper-failed``, ``creator-failed``, ``policy``,
    ``not-resident``, ``cgroup``, ``cancelled``, ``system-call``. ``host_node`` is the
    node concerned, where one is; sizes in bytes.
    """

    exit_code = Exit.HOST

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        host_node: int | None = None,
        needed_bytes: int = 0,
        available_bytes: int = 0,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
        self.host_node = host_node
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes


class ProvisionCancelledError(ProvisionError):
    """Somebody asked to stop: the spec is gone, or the daemon is stopping."""

    def __init__(self, vm: str) -> None:
        super().__init__(f"{vm}: provisioning was cancelled", reason="cancelled")
