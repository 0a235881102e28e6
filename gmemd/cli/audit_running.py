"""An audit of running VMs, here and now, with its progress and its summary."""

from __future__ import annotations

import random
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import gmemd
from gmemd.audit.model import CONFIDENCE
from gmemd.audit.observed import Effort, Unknown
from gmemd.cli.audit import DEFAULT_SAMPLE_PAGES, NoSuchVmError, UntoldError
from gmemd.cli.figures import estimate, percent
from gmemd.cli.lines import print_line
from gmemd.cli.output import console
from gmemd.daemon.observing import Finder, Found, FoundVm
from gmemd.export.snapshot import Snapshot
from gmemd.export.snapshot_json import JSON_VERSION, vm_to_json
from gmemd.export.textfile import render_textfile
from gmemd.host.reading import read_host
from gmemd.host.vms.finding import to_see_it
from gmemd.plan.matching import LEAST_GUEST_BYTES
from gmemd.spec.config import load_config
from gmemd.spec.loading import load_directory
from gmemd.spec.model import Source
from gmemd.spec.problems import SpecError, printable
from gmemd.spec.sizes import format_size

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console

    from gmemd.export.snapshot import VmStatus
    from gmemd.host.model import Host
    from gmemd.spec.model import VmSpec

PATIENCE_SECONDS = 1.0
NAMES_TOLD = 10


@dataclass(frozen=True, slots=True)
class Looked:
    """What was seen: VMs by misplaced bytes, the names of those that ended meanwhile.

    ``unseen_processes`` can't be looked into; ``hidden`` tells of those that can't be known of.
    """

    host: Host
    vms: tuple[VmStatus, ...]
    ended: tuple[str, ...]
    unseen_processes: int
    hidden: str
    taken_timestamp: float
    whole_host: bool

    @property
    def sees_not_all(self) -> bool:
        """Whether there may be VMs that weren't found."""
        return bool(self.unseen_processes or self.hidden)

    @property
    def vms_json(self) -> list[dict[str, Any]]:
        """The VMs as JSON has them."""
        return [vm_to_json(vm) for vm in self.vms]

    def to_json(self) -> dict[str, Any]:
        """Everything, as `gmemd audit --all --json` prints it."""
        return {
            "version": JSON_VERSION,
            "gmemd_version": gmemd.__version__,
            "taken_timestamp": self.taken_timestamp,
            "host_nodes": [{"id": node.id, "memory": node.total_bytes} for node in self.host.nodes],
            "summary": self.totals(),
            "unseen_processes": self.unseen_processes,
            "hidden_processes": self.hidden,
            "ended": list(self.ended),
            "vms": self.vms_json,
        }

    def prometheus(self) -> bytes:
        """The metrics of the VMs."""
        snapshot = Snapshot(
            gmemd.__version__,
            self.taken_timestamp,
            host=self.host,
            vms=self.vms,
            unseen_processes=self.unseen_processes if self.whole_host else None,
        )
        return render_textfile(snapshot)

    def totals(self) -> dict[str, int]:
        """Counts of VMs, and bytes over all of them."""
        nodes = [node for vm in self.vms if vm.drift is not None for node in vm.drift.guest_nodes]
        declared = [node for node in nodes if node.declared]
        running = [vm.running for vm in self.vms if vm.running is not None]
        return {
            "vms": len(self.vms),
            "drifting": sum(vm.drifting for vm in self.vms),
            "declaring_nothing": sum(
                not vm.declared_by and vm.unknown != Unknown.NOT_PERMITTED for vm in running
            ),
            "not_seen": sum(vm.audit is None for vm in self.vms),
            "resident": sum(node.resident_bytes for node in nodes),
            "placed": sum(node.placed_bytes for node in declared),
            "misplaced": sum(node.misplaced_bytes for node in declared),
            "unknown": sum(node.unknown_bytes for node in nodes),
            "unmatched": sum(vm.unmatched_bytes for vm in running),
        }

    def print(self, out: Console, *, where: bool = False) -> None:
        """Print the VMs, with ``where`` where in them what is, and one line about the host."""
        from gmemd.cli.vm_view import print_vm  # noqa: PLC0415  rich, to draw with

        host_nodes = [node.id for node in self.host.nodes if node.has_memory]
        for vm in self.vms_json:
            print_vm(out, vm, host_nodes, detailed=not self.whole_host)
            if where:
                from gmemd.cli.strip import print_where  # noqa: PLC0415  as above

                print_where(out, vm)
            out.print()
        if self.whole_host:
            print_line(out, self._summary())
        if self.unseen_processes and self.whole_host:
            print_line(
                out,
                f"{_processes(self.unseen_processes)} could not be looked into and may hold VMs: "
                f"{to_see_it()}",
            )
        if self.hidden and self.whole_host:
            print_line(out, f"there may be more VMs: {self.hidden}")

    def _summary(self) -> str:
        """One line: how many VMs, how much is where it should be."""
        totals = self.totals()
        if not self.vms:
            return "no running VM was found" + ("" if self.hidden else " on this host")
        words = [f"{totals['vms']} VM{'' if totals['vms'] == 1 else 's'}"]
        if totals["not_seen"] < totals["vms"]:
            words.append(f"{self._size(totals['resident'])} resident")
        seen = totals["placed"] + totals["misplaced"]
        if seen:
            share = percent(totals["misplaced"] / seen)
            words.append(f"{self._size(totals['placed'])} placed")
            words.append(f"{self._size(totals['misplaced'])} misplaced ({share})")
        if totals["unknown"]:
            words.append(f"{self._size(totals['unknown'])} unknown")
        if totals["unmatched"]:
            words.append(f"{format_size(totals['unmatched'])} unmatched")
        for key, one, many in (
            ("drifting", "VM drifts", "VMs drift"),
            ("declaring_nothing", "declares nothing", "declare nothing"),
            ("not_seen", "could not be seen", "could not be seen"),
        ):
            if totals[key]:
                words.append(f"{totals[key]} {one if totals[key] == 1 else many}")
        if self.ended:
            words.append(f"{len(self.ended)} ended meanwhile")
        return ", ".join(words)

    def _size(self, size: int) -> str:
        """A sum of sizes, as an estimate where one of them is."""
        drifts = [vm.drift for vm in self.vms if vm.drift is not None]
        sampled = any(node.sampled for drift in drifts for node in drift.guest_nodes)
        return estimate(size) if sampled and size else format_size(size)


def look(args: argparse.Namespace, pid: int | None = None) -> Looked:
    """Find the VMs that are asked for, and look at them. Raises GmemdError.

    ``pid`` is that of the one VM that is asked for by name, where a daemon tells it.
    """
    finder = Finder()
    found = _wanted(finder, args, pid)
    host = read_host(probe=False)
    statuses: list[VmStatus] = []
    ended: list[str] = []
    with _progress(found.vms, looks=2 if args.where else 1) as (advance, enter):
        effort = Effort(
            sample_pages=None if args.full else args.sample or DEFAULT_SAMPLE_PAGES,
            rng=random.Random(),  # noqa: S311  a sample, no secret
            progress=advance,
            where=args.where,
            confidence=args.confidence or CONFIDENCE,
            margin=args.margin,
            jobs=args.jobs or 1,
        )
        for vm in found.vms:
            enter(vm)
            status = finder.observe(vm, host, effort)
            if status.running is not None and status.running.unknown == Unknown.GONE:
                ended.append(vm.name)
            else:
                statuses.append(status)
    if ended and not args.all:
        raise NoSuchVmError(f"{ended[0]} ended while it was looked at")
    return Looked(
        host=host,
        vms=tuple(sorted(statuses, key=_worst_first)),
        ended=tuple(ended),
        unseen_processes=found.unseen_processes,
        hidden=found.hidden_processes if args.all else "",
        taken_timestamp=time.time(),
        whole_host=args.all,
    )


def _wanted(finder: Finder, args: argparse.Namespace, pid: int | None) -> Found:
    """The VMs that the command line asks for; ``pid`` where a daemon knows the one by that name."""
    if args.pid is not None:
        vm = finder.find_pid(args.pid)
        if vm is None:
            raise NoSuchVmError(
                f"there is no process {args.pid}", hint="`gmemd audit --all` finds all VMs"
            )
        if vm.vmm.kvm is False and not vm.declaration.vmm:
            raise NoSuchVmError(
                f"pid {args.pid} ({vm.vmm.program}) is no VM: it holds no KVM VM, and is no VMM "
                "that gmemd knows",
                hint="`gmemd audit --all` finds all VMs",
            )
        if vm.vmm.kvm is None and not vm.declaration.vmm:
            raise UntoldError(
                f"whether pid {args.pid} ({printable(vm.vmm.program)}) is a VM can't be told: "
                f"{vm.vmm.blocked}",
                hint=vm.vmm.hint,
            )
        return Found((vm,))
    found = finder.find(*_specs())
    if args.all:
        return found
    chosen = tuple(vm for vm in found.vms if _is_meant(vm, args.vm, pid))
    if not chosen:
        raise NoSuchVmError(f"no running VM is named '{printable(args.vm)}'", hint=_names(found))
    return Found(tuple(replace(vm, name=args.vm) if pid else vm for vm in chosen))


def _is_meant(vm: FoundVm, name: str, pid: int | None) -> bool:
    """Whether a VM is the one of that name, as it is or as it is printed; or a daemon's, by pid."""
    if pid is not None:
        return vm.vmm.pid == pid
    return name in (vm.name, printable(vm.name, longest=None))


def _specs() -> tuple[tuple[VmSpec, ...], frozenset[str]]:
    """The installed specs of VMs that others run, and the names of all others.

    A daemon goes by them, and so does this. Those that can't be read are left out, with a word.
    """
    try:
        directories = [path for path in load_config().vms_directories if path.is_dir()]
        loaded = load_directory(directories) if directories else None
    except SpecError as error:
        print(f"gmemd: the VM specs are left out of account: {error.message}", file=sys.stderr)
        return (), frozenset()
    specs = loaded.specs if loaded is not None else ()
    observed = tuple(spec for spec in specs if spec.source is Source.OBSERVE)
    return observed, frozenset(spec.vm for spec in specs) - {spec.vm for spec in observed}


def _processes(count: int) -> str:
    return f"{count} process{'' if count == 1 else 'es'}"


def _names(found: Found) -> str:
    unseen = ""
    if found.unseen_processes:
        unseen = f"; {_processes(found.unseen_processes)} can't be looked into: {to_see_it()}"
    if found.hidden_processes:
        unseen += f"; {found.hidden_processes}"
    if not found.vms:
        return f"none was found at all{unseen}"
    names = ", ".join(printable(vm.name) for vm in found.vms[:NAMES_TOLD])
    more = len(found.vms) - NAMES_TOLD
    return f"there are {names}{f' and {more} more' if more > 0 else ''}{unseen}"


def _worst_first(vm: VmStatus) -> tuple[int, int, str]:
    nodes = vm.drift.guest_nodes if vm.drift is not None else ()
    misplaced = sum(node.misplaced_bytes for node in nodes)
    return -misplaced, -sum(node.unknown_bytes for node in nodes), vm.vm


@contextmanager
def _progress(
    vms: Sequence[FoundVm], looks: int = 1
) -> Iterator[tuple[Callable[[int], None], Callable[[FoundVm], None]]]:
    """What notes bytes that were looked at, and what notes the VM that is looked at now.

    ``looks`` is how often each byte is.

    A bar appears at a terminal once that has taken a second.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    errors = console(stderr=True)
    begun = time.monotonic()
    sizes = {vm.vmm.pid: _size_bytes(vm) * looks for vm in vms}
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )
    task = bar.add_task("looking", total=sum(sizes.values()) or 1)
    done = before = 0

    def show() -> None:
        if not bar.live.is_started and time.monotonic() - begun > PATIENCE_SECONDS:
            bar.start()
        bar.update(task, completed=done)

    def advance(length: int) -> None:
        nonlocal done
        done += length
        show()

    def enter(vm: FoundVm) -> None:
        nonlocal done, before
        done = before
        before += sizes[vm.vmm.pid]
        bar.update(task, description=f"looking at {printable(vm.name, longest=40)}")
        show()

    try:
        yield advance, enter
    finally:
        if bar.live.is_started:  # where there is no terminal, stopping it prints an empty line
            bar.stop()


def _size_bytes(vm: FoundVm) -> int:
    """About how much of a VM is looked at."""
    sizes = [piece.size_bytes for piece in vm.vmm.pieces]
    return sum(size for size in sizes if size >= LEAST_GUEST_BYTES)
