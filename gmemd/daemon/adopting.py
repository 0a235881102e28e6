"""VMMs that know nothing of gmemd: found when they appear, and their memory taken in.

What a VMM has is read in the observer's thread; its memory then is placed as registered memory is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from asyncvarlink import VarlinkErrorReply

from gmemd.audit.observed import read_policies
from gmemd.daemon.appearing import Appearances
from gmemd.daemon.holding import Holder
from gmemd.daemon.observing import Finder, FoundVm, matches
from gmemd.daemon.taking import Placed, ToPlace
from gmemd.daemon.varlink.errors import LayoutMismatch, NotReady
from gmemd.daemon.varlink.told import ambiguous, layout_mismatch, told_ambiguous
from gmemd.daemon.watched import remedy
from gmemd.errors import GmemdError
from gmemd.host.vms.holders import read_facts
from gmemd.host.vms.taking import duplicate, open_vmm, taken
from gmemd.plan.adopting import plan_adoption
from gmemd.plan.errors import AmbiguousError, Candidate, LayoutMismatchError
from gmemd.plan.observed import plan_observed
from gmemd.spec.model import Source

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gmemd.audit.model import PolicyRead
    from gmemd.daemon.fleet import Fleet
    from gmemd.daemon.taking import Taking
    from gmemd.daemon.varlink.errors import Ambiguous
    from gmemd.daemon.vm import ManagedVm
    from gmemd.host.model import Host
    from gmemd.memory.passed import MemoryFile
    from gmemd.plan.adopting import Adoption
    from gmemd.spec.model import VmSpec

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
"""Between two looks for new processes, while a VM waits for its VMM."""

MOST_REMEMBERED = 1024

MAKING_SECONDS = 30.0
"""How long a VMM that has just appeared may take to make its memory."""


@dataclass(frozen=True, slots=True)
class Adopted:
    """What became of a VMM's memory: its regions, and what of it stays the VMM's, in words."""

    pid: int
    placed: list[Placed]
    left: tuple[str, ...]


@dataclass(slots=True)
class _InHand:
    """Descriptors taken from a VMM, until they are placed or given up."""

    pidfd: int = -1
    fds: list[int] = field(default_factory=list)

    def give_up(self) -> list[int]:
        """What is still here, to be closed: the caller's."""
        fds, self.fds, self.pidfd = [*self.fds, self.pidfd], [], -1
        return [fd for fd in fds if fd >= 0]


class Adopting:
    """Adopts VMMs: those that a caller names, and those that specs wait for."""

    def __init__(self, fleet: Fleet, taking: Taking) -> None:
        self._fleet = fleet
        self._taking = taking
        self._finder: Finder | None = None
        self._appearances = Appearances()
        self._first_seen: dict[str, float] = {}
        self._failure = ""

    async def run(self) -> None:
        """Adopt what appears, until cancelled."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if not (specs := self._waiting()):
                continue
            try:
                found = await self._fleet.workers.observe(self._appeared, specs)
            except GmemdError as error:
                self._note(error.in_one_line)
                continue
            except Exception:
                log.exception("looking for VMMs to adopt failed")
                continue
            self._failure = ""
            for spec, vm in found:
                await self.take_on(spec, vm)

    def _note(self, failure: str) -> None:
        """Say why nobody could be looked for, if that is another reason than before; count it."""
        self._fleet.counters.add_audit_error("discovery")
        if failure != self._failure:
            log.error("looking for VMMs to adopt failed: %s", failure)
        self._failure = failure

    async def take_on(self, spec: VmSpec, found: FoundVm) -> None:
        """Adopt a VMM that a spec waits for; what goes wrong is its VM's to tell."""
        vm = self._fleet.vms.get(spec.vm)
        if vm is None or vm.regions or vm.busy or vm.left_alone == found.vmm.pid:
            return
        if len(self._first_seen) > MOST_REMEMBERED:
            self._first_seen.clear()
        first = self._first_seen.setdefault(f"{vm.name}/{found.vmm.pid}", time.monotonic())
        young = time.monotonic() - first < MAKING_SECONDS
        try:
            await self._adopt(vm, spec, found, whole=young)
        except (VarlinkErrorReply, GmemdError) as error:
            message, hint = _words(error)
            if young:  # it may be making its memory
                vm.unadopted = f"its VMM, pid {found.vmm.pid}, isn't adopted yet: {message}", hint
                self._fleet.changed(vm)
            elif vm.fail("adopt", f"pid {found.vmm.pid} can't be adopted: {message}", hint):
                log.warning("%s: %s", vm.name, vm.message)
                self._fleet.changed(vm)
        except Exception:
            log.exception("%s: adopting pid %d failed", vm.name, found.vmm.pid)
            vm.fail("internal", "internal error", "the daemon's log has the traceback")
            self._fleet.changed(vm)
        else:
            self._first_seen.clear()
            vm.unadopted = "", ""

    def lost(self, spec: VmSpec) -> None:
        """Forget that a VMM could not be adopted, which is gone."""
        vm = self._fleet.vms.get(spec.vm)
        if vm is not None and not vm.regions and not vm.busy:
            vm.unadopted = "", ""
            if vm.failure:
                vm.ask(spec)

    async def adopt(self, vm: ManagedVm, pid: int | None) -> Adopted:
        """Adopt the VMM of a pid, or the one that the VM's spec finds.

        Raises the varlink errors of Adopt; nothing is taken then.
        """
        spec = self._fleet.desired.specs.get(vm.name)
        if spec is None or spec.source is not Source.ADOPT:
            says = f"source: {spec.source}" if spec is not None else "nothing that is understood"
            raise LayoutMismatch(
                vm=vm.name,
                guest_node=None,
                message=f"its spec says {says}",
                hint="write source: adopt for a VM whose VMM makes its memory by itself",
            )
        try:
            found = await self._fleet.workers.observe(self._find, spec, pid)
        except GmemdError as error:
            raise _not_ready(vm, error) from error
        if len(found) > 1:
            raise _several(vm.name, found)
        if not found:
            what = f"no VMM has pid {pid}" if pid is not None else "no running VMM matches its spec"
            raise NotReady(
                vm=vm.name,
                state=str(vm.state),
                message=what,
                hint="`gmemd audit --all` shows the VMs that run here",
            )
        return await self._adopt(vm, spec, found[0])

    async def _adopt(
        self, vm: ManagedVm, spec: VmSpec, found: FoundVm, *, whole: bool = False
    ) -> Adopted:
        """Take a VMM's memory and place it; ``whole``: not before all that it declares is there."""
        if found.vmm.blocked:
            raise NotReady(
                vm=vm.name,
                state=str(vm.state),
                message=found.vmm.blocked,
                hint=remedy(),
            )
        fleet = self._fleet
        host = await fleet.known_host()
        in_hand = _InHand()
        try:
            adoption = await fleet.workers.observe(_take, spec, found, host, in_hand, whole=whole)
            files = [await fleet.workers.identify(fd) for fd in in_hand.fds]
            facts = await fleet.workers.read(read_facts, found.vmm.pid)
            holder = Holder(in_hand.pidfd, found.vmm.pid, facts)
            in_hand.pidfd = -1
            try:
                to_place = _to_place(adoption, in_hand.fds, files)
                placed = await self._taking.place(vm, spec, to_place, holder)
            except BaseException:
                if vm.holder is not holder:
                    holder.close()
                raise
        except LayoutMismatchError as error:
            raise layout_mismatch(vm.name, error) from error
        except AmbiguousError as error:
            raise ambiguous(vm.name, error) from error
        except GmemdError as error:
            raise _not_ready(vm, error) from error
        finally:
            await fleet.workers.close_fds(in_hand.give_up())
        left = tuple(f"guest node {one.guest_node}: {one.why}" for one in adoption.left)
        vm.holder_warnings = (*vm.holder_warnings, *left)
        log.info("%s: adopted pid %d, %d regions", vm.name, found.vmm.pid, len(placed))
        fleet.changed(vm)
        return Adopted(found.vmm.pid, placed, left)

    def _waiting(self) -> list[VmSpec]:
        """The specs whose VMM isn't there yet."""
        vms = self._fleet.vms
        return [
            spec
            for name, spec in self._fleet.desired.specs.items()
            if spec.source is Source.ADOPT
            and (vm := vms.get(name)) is not None
            and not vm.regions
            and not vm.busy
        ]

    def _appeared(self, specs: Sequence[VmSpec]) -> list[tuple[VmSpec, FoundVm]]:
        """In the thread: VMMs that specs wait for, among the processes that are new."""
        pids = self._appearances.look()
        if not pids:
            return []
        finder = self._known_finder()
        if not any(vm.spec is not None for vm in finder.find(specs, among=pids).vms):
            return []
        found = finder.find(specs).vms  # an older one may match as well
        return [(vm.spec, vm) for vm in found if vm.spec is not None]

    def _find(self, spec: VmSpec, pid: int | None) -> list[FoundVm]:
        """In the thread: the VMM of a pid, or all that match the spec."""
        finder = self._known_finder()
        if pid is not None:
            found = finder.find_pid(pid)
            return [] if found is None else [found]
        vms = finder.find().vms
        return [vm for vm in vms if matches(spec.match, vm.vmm, vm.declaration, vm=spec.vm)]

    def _known_finder(self) -> Finder:
        if self._finder is None:
            self._finder = Finder()
        return self._finder


def _not_ready(vm: ManagedVm, error: GmemdError) -> NotReady:
    return NotReady(vm=vm.name, state=str(vm.state), message=error.message, hint=error.hint)


def _take(spec: VmSpec, found: FoundVm, host: Host, in_hand: _InHand, *, whole: bool) -> Adoption:
    """In the thread: say which of a VMM's files are the spec's, and take them."""
    if not found.declaration.vmm and not any(piece.fds for piece in found.vmm.pieces):
        raise LayoutMismatchError(
            f"pid {found.vmm.pid} ({found.vmm.program}) is no VMM that gmemd knows, and has no "
            "guest_memfd and no large memfd",
            hint="`gmemd audit --all` shows the VMs that run here",
        )
    in_hand.pidfd = open_vmm(found.vmm)
    try:
        adoption = _planned(spec, found, host, {})
    except AmbiguousError:
        adoption = _planned(spec, found, host, read_policies(found.vmm))
    lacking = next((left for left in adoption.left if not left.found), None)
    if whole and lacking is not None:
        raise LayoutMismatchError(lacking.why, guest_node=lacking.guest_node)
    wanted = [(region.fd, region.inode) for region in adoption.regions]
    with taken(found.vmm, in_hand.pidfd, wanted) as fds:
        for fd in fds:
            in_hand.fds.append(duplicate(fd))
    return adoption


def _planned(
    spec: VmSpec, found: FoundVm, host: Host, policies: Mapping[int, PolicyRead]
) -> Adoption:
    """Say which of a VMM's files are the spec's, by the kernel's policies too where they are read.

    To read them holds the VMM's locks for a moment: only where nothing else tells.
    """
    observed = plan_observed(
        spec.vm,
        found.vmm,
        found.declaration,
        host,
        policies={address: (held.mode, held.nodes) for address, held in policies.items()},
        spec=spec,
    )
    return plan_adoption(observed, spec, found.declaration, host)


def _to_place(adoption: Adoption, fds: Sequence[int], files: Sequence[MemoryFile]) -> list[ToPlace]:
    return [
        ToPlace(
            plan=region.plan,
            region=region.region,
            spec_index=region.spec_index,
            fd=fd,
            offset=region.offset,
            file=file,
        )
        for region, fd, file in zip(adoption.regions, fds, files, strict=True)
    ]


def _several(vm: str, found: Sequence[FoundVm]) -> Ambiguous:
    candidates = [
        Candidate(f"{one.name}: {one.vmm.program}, cgroup {one.vmm.cgroup}", pid=one.vmm.pid)
        for one in found
    ]
    hint = "name one with --pid, or have match name what only one of them has"
    return told_ambiguous(vm, f"{len(found)} running VMMs match its spec", hint, candidates)


def _words(error: VarlinkErrorReply | GmemdError) -> tuple[str, str]:
    """A message and a hint."""
    if isinstance(error, GmemdError):
        return error.message, error.hint or ""
    parameters = getattr(error, "parameters", {})
    return str(parameters.get("message") or error.name), str(parameters.get("hint") or "")
