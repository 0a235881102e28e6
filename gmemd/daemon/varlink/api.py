"""The varlink interface io.gmemd: what it does, and who may call what.

asyncvarlink reads the methods' annotations at run time, so they are real types here.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from importlib.resources import files
from typing import Any, Protocol, cast

from asyncvarlink import (
    AnnotatedResult,
    VarlinkInterface,
    VarlinkInterfaceRegistry,
    varlinkmethod,
)
from asyncvarlink.conversion import VarlinkType
from asyncvarlink.serviceerrors import InvalidParameter, PermissionDenied
from asyncvarlink.serviceinterface import VarlinkServiceInterface

import gmemd
from gmemd.audit.asked import Asked
from gmemd.daemon.varlink import errors
from gmemd.daemon.varlink import interface as io
from gmemd.daemon.varlink.asked import asked_for
from gmemd.daemon.varlink.listing import Listing
from gmemd.daemon.varlink.peer import Peer
from gmemd.daemon.varlink.protocol import Call, current_call
from gmemd.daemon.varlink.protocol import Protocol as CallProtocol
from gmemd.export.snapshot import Snapshot, VmStatus
from gmemd.export.snapshot_json import vm_to_json

_VM = VarlinkType.from_type_annotation(io.Vm)


class Service(Protocol):
    """What the API stands on. Methods raise the varlink errors that the interface gives them."""

    @property
    def snapshot(self) -> Snapshot:
        """The latest published snapshot."""

    async def change(self) -> None:
        """Wait until a snapshot is published."""

    async def usable(self, peer: Peer) -> frozenset[str]:
        """Return the names of the VMs that a peer may use."""

    async def may_pass_specs(self, peer: Peer) -> bool:
        """Whether a peer may bring a spec along, and plan."""

    async def reload(self) -> io.ReloadResult:
        """Read config and specs again."""

    def audit(self, vm: str, asked: Asked) -> AsyncIterator[tuple[int, int] | VmStatus | None]:
        """Audit a VM now; gives bytes looked at and in all while it goes on."""

    def acquire(
        self,
        vm: str,
        call: Call,
        *,
        holder: int | None,
        cgroup: int | None,
        timeout_ms: int | None,
        spec: str | None,
    ) -> AsyncIterator[io.AcquireResult]:
        """Hand out a VM's memory; progress first, the last one has regions."""

    async def register(
        self,
        vm: str,
        call: Call,
        regions: list[io.OfferedRegion],
        *,
        remove: list[int],
        holder: int | None,
        cgroup: int | None,
        spec: str | None,
    ) -> io.PlacedResult:
        """Take in memory that a VMM has made."""

    async def adopt(self, vm: str, pid: int | None) -> io.PlacedResult:
        """Take in the memory of a VMM that runs."""

    async def hand_over(self, vm: str, call: Call, holder: int) -> io.HandoverResult:
        """Make another process the holder."""

    async def release(self, vm: str, call: Call, *, force: bool) -> io.ReleaseResult:
        """Give back a VM's memory."""

    async def plan(self, vm: str | None, spec: str | None) -> io.PlanResult:
        """Tell what would be placed where."""


def interface_text() -> str:
    """Return the checked-in description of the interface, comments included."""
    return files("gmemd.daemon.varlink").joinpath("io.gmemd.varlink").read_text(encoding="utf-8")


class GmemdInterface(VarlinkInterface, name=io.INTERFACE):
    """The daemon's interface; io.gmemd.varlink beside this file describes it."""

    errors = (
        errors.NoSuchVM,
        errors.NotAuditable,
        errors.ReloadFailed,
        errors.AuditFailed,
        errors.BadSpec,
        errors.NotReady,
        errors.DoesNotFit,
        errors.ProvisioningFailed,
        errors.NotSupportedByKernel,
        errors.AlreadyOwned,
        errors.LayoutMismatch,
        errors.Ambiguous,
        errors.FdRejected,
        errors.Timeout,
    )

    def __init__(self, service: Service) -> None:
        self._service = service
        self._listing = Listing()

    @varlinkmethod
    async def List(self) -> io.ListResult:  # noqa: N802  varlink's spelling
        """Everything, of one moment, as it is sent: CallProtocol.ENCODED."""
        peer = current_call().peer
        usable = None if peer.privileged else await self._service.usable(peer)
        content = await self._listing.encode(self._service.snapshot, usable)
        return cast("io.ListResult", content)

    @varlinkmethod
    async def Describe(self, *, vm: str) -> io.VmResult:  # noqa: N802  as above
        """One VM."""
        await self._require_use(vm)
        return {"vm": _told(self._known(vm))}

    @varlinkmethod(return_type=io.WatchResult)
    async def Watch(self, *, vm: str | None = None) -> AsyncIterator[AnnotatedResult]:  # noqa: N802  as above
        """VMs as they change."""
        peer = current_call().peer
        if vm is not None:
            await self._require_use(vm)
        seen: dict[str, object] = {}
        while True:
            usable = await self._service.usable(peer)
            snapshot = self._service.snapshot
            shown = {
                status.vm: status
                for status in snapshot.vms
                if (peer.privileged or status.vm in usable) and vm in (None, status.vm)
            }
            for name in [name for name in seen if name not in shown]:
                del seen[name]
                yield AnnotatedResult({"vm": name, "status": None}, continues=True)
            for name, status in shown.items():
                now = _what_is_watched(status)
                if seen.get(name) != now:
                    seen[name] = now
                    yield AnnotatedResult({"vm": name, "status": _told(status)}, continues=True)
            if self._service.snapshot is snapshot:
                await self._service.change()

    @varlinkmethod
    async def Reload(self) -> io.ReloadResult:  # noqa: N802  as above
        """Read the configuration and the VM specs again."""
        _require_privilege()
        return await self._service.reload()

    @varlinkmethod
    async def Plan(self, *, vm: str | None = None, spec: str | None = None) -> io.PlanResult:  # noqa: N802  as above
        """What would be placed where."""
        if (vm is None) == (spec is None):
            raise InvalidParameter(parameter="vm")
        if vm is not None:
            _require_privilege()
        elif not await self._service.may_pass_specs(current_call().peer):
            raise PermissionDenied
        return await self._service.plan(vm, spec)

    @varlinkmethod(return_type=io.AuditResult)
    async def Audit(  # noqa: N802  as above
        self,
        *,
        vm: str,
        where: bool | None = None,
        full: bool | None = None,
        sample_pages: int | None = None,
        margin: float | None = None,
        confidence: float | None = None,
        jobs: int | None = None,
    ) -> AsyncIterator[AnnotatedResult]:
        """One VM, audited now."""
        asked = asked_for(
            where=where,
            full=full,
            sample_pages=sample_pages,
            margin=margin,
            confidence=confidence,
            jobs=jobs,
        )
        await self._require_use(vm)
        self._known(vm)
        async with aclosing(cast("Any", self._service.audit(vm, asked))) as steps:
            answer = None
            async for step in steps:
                if isinstance(step, VmStatus):
                    answer = step
                    continue
                done, total = step or (0, 0)
                interim = {"vm": _told(self._known(vm)), "looked_at": done, "total": total}
                yield AnnotatedResult(interim, continues=True)
        seen = answer or self._known(vm)
        yield AnnotatedResult({"vm": _told(seen), "looked_at": None, "total": None})

    @varlinkmethod(return_type=io.AcquireResult)
    async def Acquire(  # noqa: N802  as above
        self,
        *,
        vm: str,
        holder: int | None = None,
        cgroup: int | None = None,
        timeout_ms: int | None = None,
        spec: str | None = None,
    ) -> AsyncIterator[AnnotatedResult]:
        """A VM's memory."""
        await self._require_use_or_spec(vm, spec)
        steps = self._service.acquire(
            vm, current_call(), holder=holder, cgroup=cgroup, timeout_ms=timeout_ms, spec=spec
        )
        async with aclosing(cast("Any", steps)) as results:
            async for result in results:
                yield AnnotatedResult(result, continues=result["regions"] is None)

    @varlinkmethod
    async def Register(  # noqa: N802  as above
        self,
        *,
        vm: str,
        regions: list[io.OfferedRegion],
        remove: list[int] | None = None,
        holder: int | None = None,
        cgroup: int | None = None,
        spec: str | None = None,
    ) -> io.PlacedResult:
        """Memory that a VMM has made, placed."""
        await self._require_use_or_spec(vm, spec)
        return await self._service.register(
            vm,
            current_call(),
            regions,
            remove=remove or [],
            holder=holder,
            cgroup=cgroup,
            spec=spec,
        )

    @varlinkmethod
    async def Adopt(self, *, vm: str, pid: int | None = None) -> io.PlacedResult:  # noqa: N802  as above
        """The memory of a VMM that runs, placed."""
        _require_privilege()
        self._known(vm)
        return await self._service.adopt(vm, pid)

    @varlinkmethod
    async def Handover(self, *, vm: str, holder: int) -> io.HandoverResult:  # noqa: N802  as above
        """Another holder."""
        self._known(vm)
        return await self._service.hand_over(vm, current_call(), holder)

    @varlinkmethod
    async def Release(self, *, vm: str, force: bool | None = None) -> io.ReleaseResult:  # noqa: N802  as above
        """Memory given back."""
        self._known(vm)
        return await self._service.release(vm, current_call(), force=bool(force))

    @classmethod
    def render_interface_description(cls, *, comments: bool = True) -> str:
        """Describe the interface with the checked-in text, which explains fields as well."""
        return (
            interface_text() if comments else super().render_interface_description(comments=False)
        )

    def _known(self, name: str) -> VmStatus:
        found = self._service.snapshot.vm(name)
        if found is None:
            raise errors.NoSuchVM(vm=name)
        return found

    async def _require_use(self, vm: str) -> None:
        """Raise NoSuchVM, or PermissionDenied unless root, the daemon's user or the owner calls."""
        self._known(vm)
        peer = current_call().peer
        if not peer.privileged and vm not in await self._service.usable(peer):
            raise PermissionDenied

    async def _require_use_or_spec(self, vm: str, spec: str | None) -> None:
        """The same; with a spec it is who may bring one."""
        if spec is None:
            await self._require_use(vm)
        elif not await self._service.may_pass_specs(current_call().peer):
            raise PermissionDenied


def _told(status: VmStatus) -> io.Vm:
    return cast("io.Vm", _VM.fromjson(vm_to_json(status)))


def _what_is_watched(status: VmStatus) -> object:
    """What of a VM is news when it changes: its state, its holder, its drift."""
    drifts = status.drift.guest_nodes if status.drift is not None else ()
    drift = [(node.guest_node, node.drifting, node.misplaced_bytes) for node in drifts]
    return status.state, status.message, status.holder, drift


def _require_privilege() -> None:
    """Raise PermissionDenied unless root or the daemon's own user calls."""
    if not current_call().peer.privileged:
        raise PermissionDenied


def protocol_factory(
    service: Service, refused: Callable[[str], None] | None = None
) -> Callable[[], CallProtocol]:
    """Return what makes a connection's protocol: io.gmemd and org.varlink.service.

    ``refused`` is told each error that a call is answered with.
    """
    registry = VarlinkInterfaceRegistry()
    registry.register_interface(GmemdInterface(service))
    registry.register_interface(
        VarlinkServiceInterface("gmemd", "gmemd", gmemd.__version__, "", registry)
    )

    def make() -> CallProtocol:
        protocol = CallProtocol(registry)
        protocol.refused = refused
        return protocol

    return make
