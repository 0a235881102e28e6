"""What a VM spec's parts say together: what must be there, and what excludes what."""

from __future__ import annotations

import re
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING

from gmemd.spec.model import Backend, PolicyMode, Source, Value
from gmemd.spec.nodeset import format_nodeset
from gmemd.spec.problems import MOST_PROBLEMS, Fault, KeyPath, printable, spell_path
from gmemd.spec.resolve import Piece, pieces
from gmemd.spec.scalars import NEAREST_DISTANCE, VM_NAME
from gmemd.spec.sizes import exact_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gmemd.spec.document import GuestNodeDocument, VmDocument

_MOST_SHARERS = 8
"""Guest nodes that are named as having another one's vCPUs already."""

_SOURCES_OF_KEY = {
    "confidential": {Source.REGISTER, Source.ADOPT},
    "match": {Source.ADOPT, Source.OBSERVE},
    "on_vmm_exit": {Source.CREATE, Source.REGISTER},
    "cgroup": {Source.CREATE, Source.REGISTER},
}
_NOTHING_CHANGES = "observing changes nothing"
_NO_PREFAULT = {
    Source.ADOPT: "allocating behind a running VMM could give its guest pages that it shouldn't "
    "have (postcopy, snapshots)",
    Source.OBSERVE: _NOTHING_CHANGES,
}
_WHY_NOT = {
    "confidential": dict.fromkeys(Source, "gmemd can't make memory that is private to another VM"),
    "match": dict.fromkeys(Source, "it finds a running VMM; nothing is looked for here"),
    "on_vmm_exit": {
        Source.ADOPT: "what is adopted is let go when its VMM exits",
        Source.OBSERVE: _NOTHING_CHANGES,
    },
    "cgroup": {
        Source.ADOPT: "nothing is prefaulted here, so nobody has to pay",
        Source.OBSERVE: _NOTHING_CHANGES,
    },
}


class VmChecks:
    """The checks of one document.

    ``bad`` are key paths that a problem was reported for already: they aren't missed, and what
    depends on them isn't judged.
    """

    def __init__(self, vm: VmDocument, bad: set[KeyPath], *, stem: str | None) -> None:
        self._vm = vm
        self._bad = bad
        self._stem = stem
        self._nodes = list(enumerate(vm.guest_nodes or ()))

    def faults(self) -> Iterator[Fault]:
        """Find every fault."""
        yield from self._check_top()
        yield from self._check_ids()
        yield from self._check_vcpus()
        for index, node in self._nodes:
            yield from self._check_forms(index, node)
            for piece in pieces(self._vm, index):
                yield from self._check_size(piece)
                yield from self._check_policy(piece)
        yield from self._check_page_sizes()
        yield from self._check_memdevs()
        yield from self._check_distances()

    def _given(self, *path: str | int) -> bool:
        """Whether a problem with that key was reported already, so that nothing is missing."""
        return any(path[:length] in self._bad for length in range(1, len(path) + 1))

    def _require(self, part: Value, path: KeyPath, *keys: str) -> Iterator[Fault]:
        for key in keys:
            if getattr(part, key) is None and not self._given(*path, key):
                yield Fault((*path, key), "is missing", _HINTS.get(key), on_key=True)

    def _check_top(self) -> Iterator[Fault]:
        vm = self._vm
        yield from self._require(vm, (), "version", "source")
        if vm.vm is None and not self._given("vm"):
            hint = f"write vm: {self._stem}, the file's name" if self._stem else None
            yield Fault(("vm",), "is missing", hint, on_key=True)
        if vm.source is not Source.OBSERVE:
            yield from self._require(vm, (), "guest_nodes")
        if vm.guest_nodes == ():
            yield Fault(("guest_nodes",), "must have at least one guest node")
        if vm.vm is not None and self._stem is not None and vm.vm != self._stem:
            renamed = f"rename the file to {vm.vm}.yaml"
            named = re.fullmatch(VM_NAME, self._stem) is not None
            yield Fault(
                ("vm",),
                f"must be the file's name without its ending, {printable(self._stem)}",
                f"{renamed}, or write vm: {self._stem}" if named else renamed,
            )
        yield from self._check_source()
        yield from self._check_one_of("owner")
        yield from self._check_one_of("match")

    def _check_source(self) -> Iterator[Fault]:
        vm = self._vm
        if vm.source is None:
            return
        for key, sources in _SOURCES_OF_KEY.items():
            if getattr(vm, key) not in {None, False} and vm.source not in sources:
                words = _either([source for source in Source if source in sources])
                yield Fault(
                    (key,),
                    f"is only for source {words}",
                    _WHY_NOT[key][vm.source],
                    on_key=key != "confidential",
                )
        for path, prefault in self._all_of("prefault"):
            if prefault and vm.source in _NO_PREFAULT:
                yield Fault(path, f"is not for source {vm.source}", _NO_PREFAULT[vm.source])
        if vm.confidential:
            for path, backend in self._all_of("backend"):
                if backend is Backend.MEMFD:
                    yield Fault(
                        path, "can't be confidential", "only guest_memfd is private to its guest"
                    )

    def _check_one_of(self, key: str) -> Iterator[Fault]:
        part = getattr(self._vm, key)
        if part is None:
            return
        names = list(type(part).model_fields)
        given = [name for name in names if getattr(part, name) is not None]
        if len(given) > 1 or not (given or any(self._given(key, name) for name in names)):
            yield Fault((key,), f"must have exactly one of {', '.join(names)}")

    def _check_ids(self) -> Iterator[Fault]:
        first: dict[int, int] = {}
        for index, node in self._nodes:
            yield from self._require(node, ("guest_nodes", index), "id")
            if node.id is None:
                continue
            if node.id in first:
                yield Fault(
                    ("guest_nodes", index, "id"),
                    f"is the id of guest_nodes[{first[node.id]}] already",
                )
            first.setdefault(node.id, index)

    def _check_vcpus(self) -> Iterator[Fault]:
        owned: dict[int, set[int]] = {}
        every: set[int] = set()
        n_told = 0
        for index, node in self._nodes:
            own = set(node.vcpus or ())
            again = own & every
            found = ((owner, again & theirs) for owner, theirs in owned.items() if again)
            for owner, shared in islice(filter(itemgetter(1), found), _MOST_SHARERS):
                noun = "vCPU" if len(shared) == 1 else "vCPUs"
                # What comes later in the file than so many others is only counted.
                which = format_nodeset(shared) if n_told < MOST_PROBLEMS else "…"
                yield Fault(
                    ("guest_nodes", index, "vcpus"),
                    f"has {noun} {which} of guest_nodes[{owner}] again",
                    "a vCPU is in one guest node",
                )
                n_told += 1
            if fresh := own - every:
                owned[index] = fresh
                every |= fresh

    def _check_forms(self, index: int, node: GuestNodeDocument) -> Iterator[Fault]:
        """Either memory, host_nodes and policy, or regions that have their own."""
        path: KeyPath = ("guest_nodes", index)
        if node.regions is None:
            if not self._given(*path, "regions"):
                yield from self._require(node, path, "memory")
            return
        if not node.regions:
            yield Fault((*path, "regions"), "must have at least one region")
        for key in ("memory", "host_nodes", "policy", "memdev"):
            if getattr(node, key) is not None:
                yield Fault(
                    (*path, key),
                    "can't stand beside regions",
                    f"give each region its own {'size' if key == 'memory' else key}",
                    on_key=True,
                )
        for number, region in enumerate(node.regions):
            yield from self._require(region, (*path, "regions", number), "size")

    def _check_size(self, piece: Piece) -> Iterator[Fault]:
        if piece.size_bytes is None or self._doubtful("backend", "page_size", path=piece.path):
            return
        below, rest = divmod(piece.size_bytes, piece.page_size)
        if rest:
            sizes = (below * piece.page_size, (below + 1) * piece.page_size)
            yield Fault(
                (*piece.path, piece.size_key),
                f"must be a multiple of the page size, {exact_size(piece.page_size)}",
                f"write {' or '.join(exact_size(size) for size in sizes if size)}",
            )

    def _check_policy(self, piece: Piece) -> Iterator[Fault]:
        if self._given(*piece.path, "policy") or self._given(*piece.path, "host_nodes"):
            return
        if piece.policy.needs_nodes:
            yield from self._check_node_count(piece)
        elif piece.host_nodes:
            if piece.policy is PolicyMode.LOCAL and not piece.prefault:
                yield Fault(
                    (*piece.path, "host_nodes"),
                    "says nothing beside policy local without prefault",
                    "local takes each page from the node of the CPU that touches it: "
                    "bind or preferred choose nodes, default expects them",
                    on_key=True,
                )
        elif piece.prefault and not self._doubtful("prefault", path=piece.path):
            yield Fault(
                (*piece.path, "host_nodes"),
                f"is missing: prefault under policy {piece.policy} needs a node to be named",
                "add host_nodes, or write prefault: false",
                on_key=True,
            )

    def _check_node_count(self, piece: Piece) -> Iterator[Fault]:
        if not piece.host_nodes:
            yield Fault(
                (*piece.path, "policy"),
                "needs host_nodes beside it",
                "name the nodes, like host_nodes: 0-1",
            )
        elif piece.policy is PolicyMode.PREFERRED and len(piece.host_nodes) > 1:
            yield Fault(
                (*piece.path, "host_nodes"),
                "must be one node beside policy preferred",
                "preferred-many takes several",
            )

    def _check_page_sizes(self) -> Iterator[Fault]:
        """A page size must have a memfd below it that it is for."""
        if any(path[-1] == "backend" for path in self._bad):
            return
        every = [piece for index, _ in self._nodes for piece in pieces(self._vm, index)]
        for path, _ in self._all_of("page_size"):
            level = path[:-1]
            below = [piece for piece in every if piece.path[: len(level)] == level]
            if not any(piece.backend is Backend.MEMFD for piece in below):
                yield Fault(path, "is only for backend memfd", "guest_memfd has pages of 4KiB only")

    def _check_memdevs(self) -> Iterator[Fault]:
        """Names of a VMM's backends: of a running one, and each once."""
        first: dict[object, KeyPath] = {}
        for path, name in self._all_of("memdev"):
            if self._vm.source not in (Source.ADOPT, None):
                yield Fault(
                    path,
                    "is only for source adopt",
                    "it finds a backend of a running VMM by its name",
                    on_key=True,
                )
            elif name in first:
                yield Fault(path, f"is the memdev of {spell_path(first[name][:-1])} already")
            first.setdefault(name, path)

    def _check_distances(self) -> Iterator[Fault]:
        ids = {node.id for _, node in self._nodes}
        if None in ids:
            return
        given: dict[tuple[int, int], int] = {}
        for index, node in self._nodes:
            for to, distance in (node.distances or {}).items():
                path: KeyPath = ("guest_nodes", index, "distances", str(to))
                start = node.id or 0
                if to not in ids:
                    known = format_nodeset(known for known in ids if known is not None)
                    yield Fault(
                        path, "is not a guest node of this VM", f"they are {known}", on_key=True
                    )
                elif start == to and distance != NEAREST_DISTANCE:
                    yield Fault(
                        path, f"must be {NEAREST_DISTANCE}, the distance of a node to itself"
                    )
                elif start != to and distance == NEAREST_DISTANCE:
                    yield Fault(path, f"must be more than {NEAREST_DISTANCE} to another node")
                elif given.get((to, start), distance) != distance:
                    yield Fault(
                        path,
                        f"must be {given[to, start]}, the distance from guest node {to} to {start}",
                        "give a distance once: it counts both ways",
                    )
                given[start, to] = distance

    def _doubtful(self, *keys: str, path: KeyPath = ()) -> bool:
        """Whether one of the keys is bad at any level above that path."""
        levels = (path[:length] for length in range(len(path) + 1))
        return any((*level, key) in self._bad for level in levels for key in keys)

    def _all_of(self, key: str) -> Iterator[tuple[KeyPath, object]]:
        """A key's values at all levels where it is given."""
        levels: list[tuple[KeyPath, Value]] = [((), self._vm)]
        for index, node in self._nodes:
            levels.append((("guest_nodes", index), node))
            levels += [
                (("guest_nodes", index, "regions", number), region)
                for number, region in enumerate(node.regions or ())
            ]
        for path, part in levels:
            value = getattr(part, key, None)  # not every key is of every level
            if value is not None:
                yield (*path, key), value


def _either(words: list[str]) -> str:
    """Join words as ``a, b or c``."""
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


_HINTS = {
    "version": "write version: 1",
    "source": "write source: create for memory that gmemd makes",
    "memory": "write memory: and a size such as 16GiB, or regions: for memory in pieces",
    "size": "write size: and a size such as 16GiB",
    "guest_nodes": "a VM without NUMA has one: guest_nodes: [{id: 0, memory: 16GiB, ...}]",
}
