"""Specs that callers bring along: checked, kept beside the operator's, and given up again."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gmemd.daemon.desired import compare
from gmemd.daemon.inline import InlineSpecError, InlineSpecs, encoded
from gmemd.daemon.varlink.errors import AlreadyOwned, BadSpec, NotReady
from gmemd.daemon.varlink.told import told_problem
from gmemd.spec.loading import parse_spec
from gmemd.spec.problems import Problem, SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gmemd.daemon.fleet import Fleet
    from gmemd.daemon.reconcile import Reconciler
    from gmemd.spec.model import Source, VmSpec

log = logging.getLogger(__name__)


class PassedSpecs:
    """The inline specs of a fleet. ``users`` may bring some, besides root and the daemon's own.

    Whoever changes which specs are in force holds ``changing`` meanwhile.
    """

    def __init__(self, fleet: Fleet, state_directory: Path, users: Sequence[str]) -> None:
        self.users = tuple(users)
        self.files = InlineSpecs(state_directory)
        self.reconciler: Reconciler | None = None
        self._fleet = fleet
        self.changing = asyncio.Lock()

    async def parse(self, vm: str | None, text: str) -> VmSpec:
        """Read a spec; raises BadSpec with all that is wrong in it."""
        try:
            if vm is not None:
                return await self._fleet.workers.read(self.files.parse, vm, text)
            return await self._fleet.workers.read(parse_spec, encoded(text), file="spec")
        except SpecError as error:
            raise _bad(error.problems) from error

    async def take(self, vm: str, text: str, source: Source, *, privileged: bool) -> None:
        """Have a spec be in force for a VM that has no file.

        Raises BadSpec, AlreadyOwned, and NotReady where its memory is another spec's.

        Its source must be the one named, which is what the call is for. A caller that is cancelled
        waits until the spec is in force, if that was begun: it is given up then as any other is.
        """
        spec = await self.parse(vm, text)
        if spec.source is not source:
            raise _bad((_has_another_source(spec, source),))
        if spec.cgroup not in {"none", "peer"} and not privileged:
            raise _bad((_has_anothers_cgroup(spec),))
        fleet = self._fleet
        while True:
            async with self.changing:
                known = fleet.vms.get(vm)
                if known is None or not known.release_wanted:
                    putting = asyncio.ensure_future(self._put_in_force(spec, text))
                    try:
                        await asyncio.shield(putting)
                    except asyncio.CancelledError:
                        await asyncio.wait([putting])
                        raise
                    return
            await fleet.change()

    async def _put_in_force(self, spec: VmSpec, text: str) -> None:
        fleet, vm = self._fleet, spec.vm
        before, known = fleet.desired.specs.get(vm), fleet.vms.get(vm)
        if before == spec:
            return
        if vm in fleet.desired.names and not self.files.has(before):
            raise _bad((_has_a_file(spec, before),))
        if known is not None and known.held and known.holder is not None:
            raise AlreadyOwned(vm=vm, holder_pid=known.holder.pid)
        in_force = known.spec if known is not None and known.regions else None
        if known is not None and in_force is not None and compare(in_force, spec).shape:
            raise NotReady(
                vm=vm,
                state=str(known.state),
                message="it has memory by another spec",
                hint="release that first, if nobody needs it: `gmemd release`",
            )
        try:
            await fleet.workers.read(self.files.store, vm, text)
        except InlineSpecError as error:
            raise NotReady(
                vm=vm, state="waiting", message=error.message, hint=error.hint
            ) from error
        fleet.desired = replace(fleet.desired, specs={**fleet.desired.specs, vm: spec})
        log.info("%s: its spec came with a call", vm)
        if self.reconciler is not None:
            self.reconciler.look_at_all()

    def give_up(self, vm: str) -> None:
        """Have an inline spec go, unless its memory is held, kept or waited for."""
        fleet = self._fleet
        known = fleet.vms.get(vm)
        if known is None or not known.inline or fleet.wanted[vm] or self.reconciler is None:
            return
        if known.holder is None and not known.release_wanted:
            known.cancel.set()
            self.reconciler.possession.release_soon(known)

    async def forget(self, vm: str) -> None:
        """Forget a VM's inline spec, as its memory is gone."""
        async with self.changing:
            try:
                await self._fleet.workers.read(self.files.forget, vm)
            except InlineSpecError as error:
                log.error("%s", error.in_one_line)  # noqa: TRY400
            desired = self._fleet.desired
            if self.files.has(desired.specs.get(vm)):  # and not a file's by now
                specs = {name: spec for name, spec in desired.specs.items() if name != vm}
                self._fleet.desired = replace(desired, specs=specs)
            self._fleet.wake.set()


def _bad(problems: Sequence[Problem]) -> BadSpec:
    told: Any = [told_problem(problem) for problem in problems]
    return BadSpec(problems=told)


def _has_anothers_cgroup(spec: VmSpec) -> Problem:
    return Problem(
        file="spec",
        line=0,
        column=0,
        key="cgroup",
        value=spec.cgroup,
        message="must be none or peer: only root has any cgroup pay",
        hint="pass your own cgroup.procs with the call, and write cgroup: peer",
    )


def _has_another_source(spec: VmSpec, source: Source) -> Problem:
    return Problem(
        file="spec",
        line=0,
        column=0,
        key="source",
        value=str(spec.source),
        message=f"must be {source} in a spec that comes with this call",
        hint="Acquire is for memory that gmemd creates, Register for memory that the VMM made",
    )


def _has_a_file(spec: VmSpec, before: VmSpec | None) -> Problem:
    path = before.path if before is not None and before.path is not None else "a file"
    return Problem(
        file="spec",
        line=0,
        column=0,
        key="vm",
        value=spec.vm,
        message=f"has a spec already: {path}",
        hint="leave spec out of the call, or remove that file and reload",
    )
