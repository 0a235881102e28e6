"""VM specs from files and directories. A bad file affects no other one."""

from __future__ import annotations

import os
import re
import stat
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gmemd.spec.checks import VmChecks
from gmemd.spec.document import MOST_GUEST_NODES, VmDocument
from gmemd.spec.problems import MOST_PROBLEMS, Fault, Problem, SpecError, printable
from gmemd.spec.resolve import resolve
from gmemd.spec.scalars import VM_NAME
from gmemd.spec.validate import validate
from gmemd.spec.yamltree import LARGEST_FILE, Document, Place, read_document

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gmemd.spec.model import VmSpec

ENDINGS = (".yaml", ".yml")
VOLATILE = Path("/run")
"""Directories below it may not exist yet: it is empty after every boot."""

_DIRECTORY_HINT = "make it a directory that gmemd can read, or name another in vms_directories"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What directories of VM specs hold.

    ``failed_files`` can't be used, and ``failed_vms`` are their VMs: what these were before stays
    in force. A file that no VM can be named after is among the problems only. ``shadowed`` are
    pairs of a file that isn't read and the file of an earlier directory that stands in its place.
    ``n_files`` counts the files that name VMs, good or bad.
    """

    specs: tuple[VmSpec, ...]
    problems: tuple[Problem, ...] = ()
    failed_files: tuple[Path, ...] = ()
    shadowed: tuple[tuple[Path, Path], ...] = ()
    n_files: int = 0

    @property
    def failed_vms(self) -> frozenset[str]:
        """Names of the VMs whose files can't be used."""
        return frozenset(path.stem for path in self.failed_files)

    @property
    def names(self) -> frozenset[str]:
        """Names of all VMs that have a file, good or bad."""
        return frozenset(spec.vm for spec in self.specs) | self.failed_vms


def parse_spec(data: bytes, *, file: str, stem: str | None = None) -> VmSpec:
    """Read the VM spec of a file's bytes; raises SpecError with all problems at once.

    ``stem`` is the name that the VM must have; None where the bytes come from no file.
    """
    document = read_document(data, file)
    _limit_guest_nodes(document)
    vm = validate(document, VmDocument)
    if vm is not None:
        for fault in VmChecks(vm, document.bad, stem=stem).faults():
            document.report(fault)
    if vm is None or document.problems:
        raise SpecError(in_order(document))
    return resolve(vm, file)


def _limit_guest_nodes(document: Document) -> None:
    """Leave out what no VM has so many of: distances and vCPUs of each are compared with all."""
    tree = document.tree
    nodes = tree.get("guest_nodes") if isinstance(tree, dict) else None
    if isinstance(nodes, list) and len(nodes) > MOST_GUEST_NODES:
        fault = Fault(("guest_nodes",), f"must have at most {MOST_GUEST_NODES} guest nodes")
        document.report(fault)
        del nodes[MOST_GUEST_NODES:]


class KnownFiles:
    """Files as they were read before: one that has the same bytes isn't parsed again."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[bytes, VmSpec]] = {}

    def load(self, path: Path) -> VmSpec:
        """Read the VM spec of a file; raises SpecError with all problems at once."""
        data = read_file(path)
        known = self._known.get(path)
        if known is None or known[0] != data:
            self._known.pop(path, None)
            self._known[path] = known = data, parse_spec(data, file=str(path), stem=path.stem)
        return known[1]

    def keep_only(self, paths: Iterable[Path]) -> None:
        """Forget all other files."""
        self._known = {path: self._known[path] for path in paths if path in self._known}


def load_spec(path: Path | str) -> VmSpec:
    """Read the VM spec of a file; raises SpecError with all problems at once."""
    path = Path(path)
    return parse_spec(read_file(path), file=str(path), stem=path.stem)


def load_directory(paths: Iterable[Path | str], known: KnownFiles | None = None) -> Loaded:
    """Read the VM specs of all directories; of a VM in several, the first directory's counts.

    ``known`` are files that were read before, and remembers these.
    Raises SpecError where a directory is missing (unless below /run) or can't be read: that is
    never the same as having no VMs.
    """
    specs: list[VmSpec] = []
    problems: list[Problem] = []
    failed: list[Path] = []
    shadowed: list[tuple[Path, Path]] = []
    chosen: dict[str, Path] = {}
    files = _list_all([Path(path) for path in paths])
    known = known or KnownFiles()
    for path in files:
        earlier = chosen.setdefault(path.stem, path)
        try:
            if earlier == path:
                specs.append(known.load(path))
            elif earlier.parent == path.parent:
                _refuse_twin(path, earlier)
            else:
                shadowed.append((path, earlier))
        except SpecError as error:
            problems += error.problems
            if re.fullmatch(VM_NAME, path.stem):
                failed.append(path)
    known.keep_only(files)
    return Loaded(tuple(specs), tuple(problems), tuple(failed), tuple(shadowed), n_files=len(files))


def list_directory(directory: Path) -> list[Path]:
    """List the files of a directory that name VMs, sorted; hidden and backup files are none.

    Raises SpecError if it can't be read.
    """
    try:
        paths = sorted(directory.iterdir())
    except OSError as error:
        problem = _file_problem(directory, error)
        raise SpecError((replace(problem, hint=_DIRECTORY_HINT),)) from error
    return [path for path in paths if path.suffix in ENDINGS and not path.name.startswith(".")]


def read_file(path: Path) -> bytes:
    """Read a regular file, up to one byte more than is accepted; raises SpecError."""
    try:
        # Neither a FIFO nor a terminal may hold the daemon up.
        with ExitStack() as stack:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
            stack.callback(os.close, fd)
            if stat.S_ISREG(os.fstat(fd).st_mode):
                file = stack.enter_context(os.fdopen(fd, "rb", closefd=False))
                return file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise SpecError((_file_problem(path, error),)) from error
    raise SpecError((_problem(path, "is not a regular file"),))


def in_order(document: Document) -> tuple[Problem, ...]:
    """Sort a document's problems from its first line to its last; of too many the first."""
    ordered = sorted(document.problems, key=lambda problem: (problem.line, problem.column))
    if len(ordered) > MOST_PROBLEMS:
        rest = len(ordered) - MOST_PROBLEMS
        return (
            *ordered[:MOST_PROBLEMS],
            _problem(Path(document.file), f"has {rest} more problems"),
        )
    return tuple(ordered)


def _list_all(directories: list[Path]) -> list[Path]:
    files: list[Path] = []
    problems: list[Problem] = []
    for directory in directories:
        if not directory.exists() and VOLATILE in directory.parents:
            continue
        try:
            files += list_directory(directory)
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(tuple(problems))
    return files


def _refuse_twin(path: Path, first: Path) -> None:
    """Refuse a second file of a VM in one directory, and say what is wrong in it besides."""
    document = read_document(read_file(path), str(path))
    place = document.place_of(("vm",))
    document.report_at(
        place,
        ("vm",),
        f"{first.name} in the same directory is VM {printable(first.stem)} already",
        "remove one of the two",
    )
    raise SpecError(in_order(document))


def _problem(path: Path, message: str, hint: str | None = None) -> Problem:
    document = Document(str(path))
    document.report_at(Place(0, 0), (), message, hint)
    return document.problems[0]


def _file_problem(path: Path, error: OSError) -> Problem:
    hint = None
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        hint = f"it is a symbolic link to {printable(str(path.readlink()))}"
    return _problem(path, f"can't be read: {error.strerror}", hint)
