"""What has to hold for whatever is read: a value that can be spelled again, or a typed error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gmemd.cli.check import excerpt
from gmemd.errors import GmemdError
from gmemd.spec.config import parse_config
from gmemd.spec.loading import parse_spec
from gmemd.spec.model import Backend, Source
from gmemd.spec.nodeset import format_nodeset
from gmemd.spec.problems import MOST_PROBLEMS, FieldError, FieldErrors, SpecError
from gmemd.spec.sizes import exact_size

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from gmemd.spec.model import GuestNode, RegionSpec, Value, VmSpec
    from gmemd.spec.problems import Problem

FILE = "a.yaml"


class Finding(Exception):  # noqa: N818  what is looked for, and no error of the one who looks
    """Something that hostile input must not bring about."""


def require(holds: object, what: str) -> None:
    """Raise Finding unless it holds."""
    if not holds:
        raise Finding(what)


def vm_spec(data: bytes) -> bool:
    """Whether it is a spec; one that is means the same when it is spelled and read again."""
    try:
        spec = parse_spec(data, file=FILE)
    except SpecError as error:
        check_problems(error, data)
        return False
    again = parse_spec(spell_spec(spec).encode(), file=FILE)
    require(again == spec, f"spelled and read again it is {again!r}, not {spec!r}")
    return True


def config(data: bytes) -> bool:
    """Whether it is a configuration."""
    try:
        parse_config(data, file=FILE).model_dump()
    except SpecError as error:
        check_problems(error, data)
        return False
    return True


def text(parse: Callable[[str], object], *errors: type[Exception]) -> Callable[[bytes], bool]:
    """Return a check of what reads the text of /proc, or of an operator; ``errors`` are its own."""

    def check(data: bytes) -> bool:
        try:
            parse(data.decode("utf-8", "surrogateescape"))
        except errors as error:
            _check_words(error)
            return False
        return True

    return check


def _check_words(error: Exception) -> None:
    require(str(error), "an error without words")
    if isinstance(error, FieldError):
        _check_line(error.message, error.hint)
    elif isinstance(error, FieldErrors):
        for one in error.errors:
            _check_line(one.message, one.hint)
    elif isinstance(error, GmemdError):
        _check_line(error.message, error.hint)


def _check_line(*lines: str | None) -> None:
    """What a person sees is one line that does nothing to a terminal."""
    for line in lines:
        require(line is None or line.isprintable(), f"not printable: {line!r}")


def check_problems(error: SpecError, data: bytes, file: str = FILE) -> None:
    """Every problem has a place in that file, and words that can be shown."""
    problems = error.problems
    require(0 < len(problems) <= MOST_PROBLEMS + 1, f"{len(problems)} problems")
    n_lines = len(data.decode("utf-8", "replace").splitlines())
    for problem in problems:
        require(problem.file == file, f"of the file {problem.file!r}")
        _check_problem(problem, n_lines)
    places = [(problem.line, problem.column) for problem in problems[:MOST_PROBLEMS]]
    require(places == sorted(places), "problems out of order")


def _check_problem(problem: Problem, n_lines: int) -> None:
    require(problem.message, "without a message")
    # Where a file ends too early is the line behind its last.
    require(0 <= problem.line <= n_lines + 1, f"line {problem.line} of {n_lines}")
    require((problem.column > 0) == (problem.line > 0), f"column {problem.column}")
    _check_line(problem.place, problem.key, problem.value, problem.message, problem.hint)
    _check_line(str(problem))
    if problem.source:  # what holds a secret has none
        require(problem.column <= len(problem.source) + 1, f"column {problem.column} of its line")
        _check_line(*excerpt(problem.source, problem.column, problem.width))


def spell_spec(spec: VmSpec) -> str:
    """YAML that means the spec, nothing left to defaults."""
    changes = spec.source in {Source.CREATE, Source.REGISTER}
    lines = [
        "version: 1",
        f"vm: {_quoted(spec.vm)}",
        f"source: {spec.source}",
        f"drift_tolerance: {spec.drift_tolerance * 100:.6f}%",
    ]
    if spec.confidential:
        lines.append("confidential: true")
    if changes:
        lines += [f"on_vmm_exit: {spec.on_vmm_exit}", f"cgroup: {_quoted(spec.cgroup)}"]
    lines += [*_spell_choice("owner", spec.owner), *_spell_choice("match", spec.match)]
    if spec.guest_nodes:
        lines.append("guest_nodes:")
    for node in spec.guest_nodes:
        lines += _spell_node(node, changes=changes)
    return "\n".join(lines) + "\n"


def _spell_choice(key: str, part: Value | None) -> list[str]:
    given = part.model_dump(exclude_none=True) if part is not None else {}
    return [f"{key}: {{{name}: {_quoted(value)}}}" for name, value in given.items()]


def _spell_node(node: GuestNode, *, changes: bool) -> list[str]:
    far = ", ".join(f"{other}: {distance}" for other, distance in node.distances.items())
    lines = [f"  - id: {node.id}", f"    distances: {{{far}}}", "    regions:"]
    if node.vcpus:
        lines.append(f"    vcpus: {format_nodeset(node.vcpus)}")
    at = lines.index("    regions:") + 1
    lines[at:at] = [f"      - {_spell_region(region, changes=changes)}" for region in node.regions]
    return lines


def _spell_region(region: RegionSpec, *, changes: bool) -> str:
    told: dict[str, Any] = {
        "size": exact_size(region.size_bytes),
        "policy": region.policy,
        "backend": region.backend,
    }
    if region.host_nodes:
        told["host_nodes"] = f"'{format_nodeset(region.host_nodes)}'"
    if region.backend is Backend.MEMFD:
        told["page_size"] = exact_size(region.page_size)
    if changes or not region.prefault:
        told["prefault"] = str(region.prefault).lower()
    if region.memdev is not None:
        told["memdev"] = _quoted(region.memdev)
    return "{" + ", ".join(f"{key}: {value}" for key, value in told.items()) + "}"


def _quoted(text: str) -> str:
    """A YAML string in double quotes: each character that isn't plain is escaped."""
    return (
        '"' + "".join(c if c.isalnum() and c.isascii() else f"\\U{ord(c):08x}" for c in text) + '"'
    )
