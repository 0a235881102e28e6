"""What is asked for: the VM specs in force, and how a reload changes them. Pure but for reading."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gmemd.errors import Exit, GmemdError
from gmemd.spec.loading import load_directory
from gmemd.spec.problems import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from gmemd.spec.loading import KnownFiles, Loaded
    from gmemd.spec.model import VmSpec
    from gmemd.spec.problems import Problem


class ReloadError(GmemdError):
    """The specs can't be read as a whole; what was in force stays."""

    exit_code = Exit.USAGE


@dataclass(frozen=True, slots=True)
class Desired:
    """The specs in force by VM; ``broken`` has, by VM, what is wrong with its newest file.

    A broken VM is in ``specs`` as well where a good version of it was seen before.
    """

    specs: Mapping[str, VmSpec] = field(default_factory=dict)
    broken: Mapping[str, Problem] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    shadowed: tuple[tuple[Path, Path], ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """VMs that have a file, good or broken."""
        return frozenset(self.specs) | frozenset(self.broken)

    def has(self, name: str) -> bool:
        """Whether a VM has a file, good or broken."""
        return name in self.specs or name in self.broken


def read_desired(
    directories: Sequence[Path],
    before: Desired | None = None,
    known: KnownFiles | None = None,
    *,
    starting: bool = False,
) -> Desired:
    """Read the directories; ``before`` is what was in force (None: nothing).

    ``known`` are files that were read before, and remembers these. Raises ReloadError where they
    can't be read, or hold no VM any more though they held some, unless the daemon is ``starting``:
    nothing that somebody holds or has left behind is released for want of a file then.
    """
    try:
        loaded = load_directory(directories, known)
    except SpecError as error:
        raise ReloadError(error.message, hint=error.hint) from error
    if before is not None and before.names and not loaded.names and not starting:
        raise ReloadError(
            f"no VM is left in {', '.join(map(str, directories))}, where "
            f"{len(before.names)} had a file: taken for a mistake, nothing was released",
            hint="to release every VM stop the daemon: systemctl stop gmemd",
        )
    return merge(loaded, before or Desired())


def merge(loaded: Loaded, before: Desired) -> Desired:
    """Take the good specs; of a broken file its VM's last good version stays in force.

    A spec that is as it was is the same object, which is quick to compare from then on.
    """
    known = before.specs
    specs = {
        spec.vm: known[spec.vm] if known.get(spec.vm) == spec else spec for spec in loaded.specs
    }
    broken = {
        path.stem: next(problem for problem in loaded.problems if problem.file == str(path))
        for path in loaded.failed_files
        if path.stem not in specs
    }
    for name in broken:
        if name in before.specs:
            specs[name] = before.specs[name]
    return Desired(specs, broken, loaded.problems, loaded.shadowed)


@dataclass(frozen=True, slots=True)
class Change:
    """How one spec differs from another. Needs new memory: ``shape``; else what may be applied."""

    shape: tuple[str, ...] = ()
    placement: tuple[str, ...] = ()
    other: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.shape or self.placement or self.other)


_SHAPE = {"size_bytes": "size", "backend": "backend", "page_size": "page_size"}
_PLACEMENT = {"policy": "policy", "host_nodes": "host_nodes"}
_OTHER = {"prefault": "prefault", "memdev": "memdev"}


def compare(old: VmSpec, new: VmSpec) -> Change:
    """Tell what a changed spec asks for: other memory, other placement, or neither."""
    shape = _differing(old, new, ("source", "confidential", "cgroup"))
    other = _differing(old, new, ("drift_tolerance", "on_vmm_exit", "owner", "match"))
    if _outline(old) != _outline(new):
        return Change((*shape, "guest_nodes"), (), tuple(other))
    placement: list[str] = []
    for mine, theirs in zip(old.guest_nodes, new.guest_nodes, strict=True):
        where = f" of guest node {mine.id}"
        pairs = list(zip(mine.regions, theirs.regions, strict=True))
        for names, found in ((_SHAPE, shape), (_PLACEMENT, placement), (_OTHER, other)):
            found += [
                f"{word}{where}"
                for key, word in names.items()
                if any(getattr(a, key) != getattr(b, key) for a, b in pairs)
            ]
        if (mine.vcpus, mine.distances) != (theirs.vcpus, theirs.distances):
            other.append(f"topology{where}")
    return Change(tuple(shape), tuple(placement), tuple(other))


def _differing(old: VmSpec, new: VmSpec, keys: tuple[str, ...]) -> list[str]:
    return [key for key in keys if getattr(old, key) != getattr(new, key)]


def _outline(spec: VmSpec) -> list[tuple[int, int]]:
    """The guest nodes' ids, and how many regions each has."""
    return [(node.id, len(node.regions)) for node in spec.guest_nodes]
