"""The varlink interface io.gmemd: what it does, and who may call what.

asyncvarlink reads the methods' annotations at run time, so they are real types here.
"""

from collections.abc import Callable
from importlib.resources import files
from typing import Protocol, cast

from asyncvarlink import (
    VarlinkInterface,
    VarlinkInterfaceRegistry,
    VarlinkInterfaceServerProtocol,
    varlinkmethod,
)
from asyncvarlink.conversion import VarlinkType
from asyncvarlink.serviceerrors import PermissionDenied
from asyncvarlink.serviceinterface import VarlinkServiceInterface

import gmemd
from gmemd.daemon.varlink.interface import (
    INTERFACE,
    AuditFailed,
    HostNode,
    ListResult,
    NoSuchVM,
    NotAuditable,
    ReloadFailed,
    ReloadResult,
    Vm,
    VmResult,
)
from gmemd.daemon.varlink.protocol import Protocol as CallProtocol
from gmemd.daemon.varlink.protocol import current_call
from gmemd.export.snapshot import Snapshot, VmStatus, snapshot_to_json, vm_to_json

_VM = VarlinkType.from_type_annotation(Vm)
_HOST_NODE = VarlinkType.from_type_annotation(HostNode)


class Service(Protocol):
    """What the API stands on."""

    @property
    def snapshot(self) -> Snapshot:
        """The latest published snapshot."""

    async def reload(self) -> ReloadResult:
        """Read config and specs again; raises the varlink error ReloadFailed."""

    async def audit(self, vm: str) -> VmStatus:
        """Audit a VM now; raises the varlink errors NotAuditable and AuditFailed."""


def interface_text() -> str:
    """Return the checked-in description of the interface, comments included."""
    return files("gmemd.daemon.varlink").joinpath("io.gmemd.varlink").read_text(encoding="utf-8")


class GmemdInterface(VarlinkInterface, name=INTERFACE):
    """The daemon's interface; io.gmemd.varlink beside this file describes it."""

    errors = (NoSuchVM, NotAuditable, ReloadFailed, AuditFailed)

    def __init__(self, service: Service) -> None:
        self._service = service

    @varlinkmethod
    def List(self) -> ListResult:  # noqa: N802  varlink's spelling
        """Everything, of one moment."""
        told = snapshot_to_json(self._service.snapshot)
        told["host_nodes"] = [_HOST_NODE.fromjson(node) for node in told["host_nodes"]]
        told["vms"] = [_VM.fromjson(vm) for vm in told["vms"]]
        return cast("ListResult", told)

    @varlinkmethod
    def Describe(self, *, vm: str) -> VmResult:  # noqa: N802  as above
        """One VM."""
        return _vm_result(self._known(vm))

    @varlinkmethod
    async def Reload(self) -> ReloadResult:  # noqa: N802  as above
        """Read the configuration and the VM specs again."""
        _require_privilege()
        return await self._service.reload()

    @varlinkmethod
    async def Audit(self, *, vm: str) -> VmResult:  # noqa: N802  as above
        """One VM, audited now."""
        _require_privilege()
        self._known(vm)
        return _vm_result(await self._service.audit(vm))

    @classmethod
    def render_interface_description(cls, *, comments: bool = True) -> str:
        """Describe the interface with the checked-in text, which explains fields as well."""
        return (
            interface_text() if comments else super().render_interface_description(comments=False)
        )

    def _known(self, name: str) -> VmStatus:
        found = self._service.snapshot.vm(name)
        if found is None:
            raise NoSuchVM(vm=name)
        return found


def _vm_result(status: VmStatus) -> VmResult:
    return {"vm": cast("Vm", _VM.fromjson(vm_to_json(status)))}


def _require_privilege() -> None:
    """Raise PermissionDenied unless root or the daemon's own user calls."""
    if not current_call().peer.privileged:
        raise PermissionDenied


def protocol_factory(service: Service) -> Callable[[], VarlinkInterfaceServerProtocol]:
    """Return what makes a connection's protocol: io.gmemd and org.varlink.service."""
    registry = VarlinkInterfaceRegistry()
    registry.register_interface(GmemdInterface(service))
    registry.register_interface(
        VarlinkServiceInterface("gmemd", "gmemd", gmemd.__version__, "", registry)
    )
    return lambda: CallProtocol(registry)
