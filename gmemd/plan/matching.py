"""Which mapping of a VMM is which of the backends that it was told to make. Pure.

Told by the file's path, by size, by the kernel's policy where it was read, and by the order in
which a VMM makes its memory: descriptors ascend, and the kernel maps from high addresses to low.
Where two mappings could be either of two backends nothing is guessed: both stay unmatched.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from gmemd.host.vms.model import Piece, PieceKind
from gmemd.spec.declared import BackendKind
from gmemd.spec.model import SMALL_PAGE, PolicyMode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gmemd.spec.declared import DeclaredBackend

LEAST_GUEST_BYTES = 32 << 20
"""What is smaller and matches nothing is taken for the VMM's own: stacks, code, video memory."""

_OWN_DESCRIPTOR = re.compile(r"/(?:proc/(?:self|\d+)|dev)/fd/(\d+)$")
_DELETED = " (deleted)"


@dataclass(frozen=True, slots=True)
class Match:
    """A backend and the pieces that are its memory, in order; ``how`` says what told.

    ``rivals`` numbers a group of backends of equal size that only order tells apart, from 1; 0 for
    a match that stands by itself.
    """

    backend: DeclaredBackend
    pieces: tuple[Piece, ...]
    how: str
    rivals: int = 0


@dataclass(frozen=True, slots=True)
class Matching:
    """All matches, in the backends' order; backends without memory and why; pieces left, and why.

    Sizes of what is left: those that may be a guest's, and those of backends' sizes.
    """

    matches: tuple[Match, ...]
    missing: tuple[tuple[DeclaredBackend, str], ...]
    unmatched: tuple[tuple[Piece, str], ...]


def match_backends(
    backends: Sequence[DeclaredBackend],
    pieces: Sequence[Piece],
    policies: Mapping[int, tuple[str, frozenset[int]]] | None = None,
) -> Matching:
    """Match what was declared with what is mapped.

    ``policies`` are those that the kernel holds, by address, where they were read.
    """
    work = _Work(list(backends), _mapped_once(pieces), policies or {})
    work.match_paths()
    work.match_sizes()
    work.match_split()
    work.match_guest_memfds()
    return work.result()


class _Work:
    """The matches so far, and what is left."""

    def __init__(
        self,
        backends: list[DeclaredBackend],
        pieces: list[Piece],
        policies: Mapping[int, tuple[str, frozenset[int]]],
    ) -> None:
        self._backends = backends
        self._pieces = [piece for piece in pieces if piece.kind is not PieceKind.GUEST_MEMFD]
        self._guest_memfds = [piece for piece in pieces if piece.kind is PieceKind.GUEST_MEMFD]
        self._policies = policies
        self._matches: list[Match] = []
        self._left = list(backends)
        self._reasons: dict[int, str] = {}
        self._why_missing: dict[int, str] = {}
        self._n_groups = 0

    def _take(
        self, backend: DeclaredBackend, pieces: tuple[Piece, ...], how: str, rivals: int = 0
    ) -> None:
        self._matches.append(Match(backend, pieces, how, rivals))
        self._left = [other for other in self._left if other is not backend]
        self._pieces = [piece for piece in self._pieces if not any(piece is p for p in pieces)]

    def match_paths(self) -> None:
        """Files that carry their backend's name, or were passed by number."""
        for backend in list(self._left):
            if backend.kind is not BackendKind.FILE:
                continue
            found = tuple(piece for piece in self._pieces if _names(backend, piece))
            if found and sum(piece.size_bytes for piece in found) == _rounded(backend, found[0]):
                self._take(backend, found, "path")

    def match_sizes(self) -> None:
        """Groups of backends that look alike, against the mappings of that kind and size."""
        groups: dict[tuple[object, ...], list[DeclaredBackend]] = {}
        for backend in self._left:
            groups.setdefault(_looks(backend), []).append(backend)
        for group in groups.values():
            found = [
                piece
                for piece in self._pieces
                if _eligible(group[0], piece) and piece.size_bytes == _rounded(group[0], piece)
            ]
            if found:
                self._match_group(group, _in_order(found))

    def _match_group(self, group: list[DeclaredBackend], found: list[Piece]) -> None:
        if len(group) == len(found) == 1:
            self._take(group[0], (found[0],), "size")
            return
        by_policy = self._by_policy(group, found)
        if by_policy is not None:
            for backend, piece in by_policy:
                self._take(backend, (piece,), "policy")
            return
        if len(group) == len(found):
            self._n_groups += 1
            by = "descriptors" if all(piece.fds for piece in found) else "addresses"
            for backend, piece in zip(group, found, strict=True):
                self._take(backend, (piece,), f"order of {by}", self._n_groups)
            return
        why = (
            f"{len(found)} mappings have the size of {_ids(group)}, and nothing tells which is "
            f"{'which' if len(group) > 1 else 'its'}"
        )
        for piece in found:
            self._reasons[id(piece)] = why
        for backend in group:
            self._why_missing[id(backend)] = why

    def _by_policy(
        self, group: list[DeclaredBackend], found: list[Piece]
    ) -> list[tuple[DeclaredBackend, Piece]] | None:
        """Pairs by the policies that the kernel holds; None where these don't tell all."""
        pairs: list[tuple[DeclaredBackend, Piece]] = []
        for backend in group:
            wanted = _alike(str(backend.policy), backend.host_nodes)
            alike = [o for o in group if _alike(str(o.policy), o.host_nodes) == wanted]
            holding = [
                piece
                for piece in found
                if (held := self._policies.get(piece.address or 0)) and _alike(*held) == wanted
            ]
            if len(alike) != len(holding):
                return None
            pairs.append((backend, holding[alike.index(backend)]))
        return pairs

    def match_split(self) -> None:
        """Backends whose memory lies in several mappings in a row, as madvise may split them."""
        for backend in list(self._left):
            if id(backend) in self._why_missing:
                continue
            eligible = [piece for piece in self._pieces if _eligible(backend, piece)]
            runs = [run for row in _rows(eligible) for run in _runs(row, backend)]
            if len(runs) == 1:
                self._take(backend, runs[0], "size")

    def match_guest_memfds(self) -> None:
        """guest_memfds beside the backends: as many of a size as there are backends of it."""
        by_size: dict[int, list[Piece]] = {}
        for piece in self._guest_memfds:
            by_size.setdefault(piece.size_bytes, []).append(piece)
        for size, found in by_size.items():
            group = [backend for backend in self._backends if backend.size_bytes == size]
            if not group:
                continue
            if len(group) != len(found):
                for piece in found:
                    self._reasons[id(piece)] = (
                        f"{len(found)} guest_memfds have the size of {_ids(group)}"
                    )
                continue
            ordered = sorted(found, key=lambda piece: piece.fds)
            if len(group) > 1:
                self._n_groups += 1
            for backend, piece in zip(group, ordered, strict=True):
                how = "order of descriptors" if len(group) > 1 else "size"
                self._take(backend, (piece,), how, self._n_groups if len(group) > 1 else 0)
                self._guest_memfds = [other for other in self._guest_memfds if other is not piece]

    def result(self) -> Matching:
        """What is matched, what isn't."""
        order = {id(backend): number for number, backend in enumerate(self._backends)}
        left = [
            (piece, self._reasons.get(id(piece), ""))
            for piece in (*self._pieces, *self._guest_memfds)
            if id(piece) in self._reasons or _may_be_guest(piece)
        ]
        return Matching(
            matches=tuple(sorted(self._matches, key=lambda match: order[id(match.backend)])),
            missing=tuple(
                (backend, self._why_missing.get(id(backend), "no mapping has its size"))
                for backend in self._left
            ),
            unmatched=tuple(left),
        )


def _mapped_once(pieces: Iterable[Piece]) -> list[Piece]:
    """Leave out second mappings of the same bytes of a file."""
    seen = set()
    kept = []
    for piece in pieces:
        if piece.shared and piece.inode is not None:
            key = (piece.inode, piece.offset, piece.size_bytes)
            if key in seen:
                continue
            seen.add(key)
        kept.append(piece)
    return kept


def _may_be_guest(piece: Piece) -> bool:
    """Whether a piece that matches nothing is worth telling of."""
    if piece.file is PieceKind.FILE and not piece.shared and piece.page_size == SMALL_PAGE:
        return False  # a program's or a library's data
    return piece.size_bytes >= LEAST_GUEST_BYTES


def _looks(backend: DeclaredBackend) -> tuple[object, ...]:
    """What mappings of a backend look like; backends that share it can be taken for each other."""
    return backend.kind, backend.size_bytes, backend.shared, backend.page_size


def _rounded(backend: DeclaredBackend, piece: Piece) -> int:
    """The backend's size in whole pages of the piece."""
    return -(-backend.size_bytes // piece.page_size) * piece.page_size


def _eligible(backend: DeclaredBackend, piece: Piece) -> bool:
    """Whether such a mapping can be such a backend's at all."""
    if backend.shared is not None and piece.file is not None and piece.shared != backend.shared:
        return False
    if backend.kind is BackendKind.RAM:
        wanted = PieceKind.MEMFD if backend.shared else None
        return piece.file is wanted
    if backend.kind is BackendKind.MEMFD:
        if piece.file is not PieceKind.MEMFD:
            return False
        return _pages_fit(backend, piece, asked=backend.page_size)
    if backend.kind is BackendKind.FILE:
        return piece.file is not None and _inside(backend.path, piece)
    return True


def _pages_fit(backend: DeclaredBackend, piece: Piece, *, asked: int | None) -> bool:
    huge = piece.page_size > SMALL_PAGE
    if asked is None:
        return not huge
    return huge if backend.page_size == 0 else piece.page_size == asked


def _names(backend: DeclaredBackend, piece: Piece) -> bool:
    """Whether the piece's file can be no other backend's."""
    if piece.file is None:
        return False
    passed = _OWN_DESCRIPTOR.match(backend.path)
    if passed:
        return int(passed[1]) in piece.fds
    path = piece.path.removesuffix(_DELETED)
    if path == backend.path:
        return True
    folder, _, name = path.rpartition("/")
    made = re.fullmatch(r"qemu_back_mem\.(?:_objects_)?(.+)\.[^.]{6}", name)
    return bool(
        made and folder == backend.path.rstrip("/") and made[1] == _as_file_name(backend.id)
    )


def _as_file_name(name: str) -> str:
    """QEMU's spelling of a backend's id in a file's name."""
    return name.replace("/", "_")


def _inside(path: str, piece: Piece) -> bool:
    """Whether the file is that path, or in that directory, or has lost its name."""
    found = piece.path.removesuffix(_DELETED)
    return not path or found == path or found.startswith(path.rstrip("/") + "/")


def _in_order(pieces: list[Piece]) -> list[Piece]:
    """As a VMM made them: by descriptor where all have one, else from high to low addresses."""
    if all(piece.fds for piece in pieces):
        return sorted(pieces, key=lambda piece: (piece.fds[0], piece.offset))
    return sorted(pieces, key=lambda piece: -(piece.address or 0))


def _rows(pieces: list[Piece]) -> list[list[Piece]]:
    """Pieces that follow upon each other without a gap, of the same file or none."""
    ordered = sorted(pieces, key=lambda piece: piece.address or 0)
    starts = []
    row = 0
    for before, piece in zip([None, *ordered], ordered, strict=False):
        row += not (before is not None and _follows(before, piece))
        starts.append((row, piece))
    return [[piece for _, piece in group] for _, group in groupby(starts, key=lambda pair: pair[0])]


def _follows(before: Piece, piece: Piece) -> bool:
    if (before.address or 0) + before.size_bytes != piece.address:
        return False
    if before.inode != piece.inode or before.shared != piece.shared:
        return False
    return piece.inode is None or before.offset + before.size_bytes == piece.offset


def _runs(row: list[Piece], backend: DeclaredBackend) -> list[tuple[Piece, ...]]:
    """Runs of two pieces and more of a row whose sizes add up to the backend's."""
    found = []
    wanted = _rounded(backend, row[0])
    for start in range(len(row)):
        total = 0
        for end in range(start, len(row)):
            total += row[end].size_bytes
            if total >= wanted:
                if total == wanted and end > start:
                    found.append(tuple(row[start : end + 1]))
                break
    return found


def _alike(mode: str, nodes: frozenset[int]) -> tuple[str, frozenset[int]]:
    """One spelling for the two kinds of preferring."""
    many = mode == PolicyMode.PREFERRED_MANY
    return str(PolicyMode.PREFERRED) if many and len(nodes) == 1 else mode, nodes


def _ids(group: Sequence[DeclaredBackend]) -> str:
    return ", ".join(backend.id or "the guest's memory" for backend in group)
