"""``gmemd audit``: where running VMs' memory is, now, against where it was meant to be."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gmemd.cli.output import console, print_json
from gmemd.client.blocking import DEFAULT_SOCKET, NoDaemonError, RefusedError, call
from gmemd.client.errors import error_of
from gmemd.errors import Exit, GmemdError
from gmemd.spec.problems import FieldError
from gmemd.spec.scalars import (
    LEAST_SAMPLE_PAGES,
    MOST_SAMPLE_PAGES,
    parse_confidence,
    parse_jobs,
    parse_margin,
    parse_sample_pages,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gmemd.cli.audit_running import Looked

_T = TypeVar("_T")

HELP = (
    "Finds running VMs and shows, guest node by host node, where their memory is and where it was "
    "meant to be, with what drifts, why, and what to do about it. It needs no daemon and no spec, "
    "and changes nothing: no page is moved or allocated, no VM is held up. A VM whose memory a "
    "daemon made is audited by the daemon."
)

DEFAULT_SAMPLE_PAGES = 4096


class NoSuchVmError(GmemdError):
    """No VM of that name or pid is known."""

    exit_code = Exit.USAGE


class UntoldError(GmemdError):
    """Whether a process is a VM can't be seen."""

    exit_code = Exit.NOT_PERMITTED


class OptionError(GmemdError):
    """Options that don't go together."""

    exit_code = Exit.USAGE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("vm", nargs="?", metavar="VM", help="the VM of this name")
    which.add_argument("--all", action="store_true", help="every VM that runs on this host")
    which.add_argument("--pid", type=int, metavar="PID", help="the VM that this process holds")
    much = parser.add_mutually_exclusive_group()
    much.add_argument(
        "--sample",
        type=_read_by(parse_sample_pages),
        metavar="N",
        help="look at N pages of each guest node, drawn at random "
        f"(default: {DEFAULT_SAMPLE_PAGES})",
    )
    much.add_argument(
        "--full",
        action="store_true",
        help="look at every page, and read the kernel's policies; of large VMs that takes a while, "
        "and reading the policies may hold up a VMM's mmap calls",
    )
    much.add_argument(
        "--margin",
        type=_read_by(parse_margin),
        metavar="P",
        help="look at as many pages of each region as it takes to tell what share of it is "
        "misplaced to within this, like 1%% or 0.5%%",
    )
    parser.add_argument(
        "--confidence",
        type=_read_by(parse_confidence),
        metavar="P",
        help="how often the bounds of a sample are to hold the truth (default: 95%%)",
    )
    parser.add_argument(
        "-j",
        "--jobs",
        type=_read_by(parse_jobs),
        metavar="N",
        help="with --full or --where: look at guest_memfds, and at memory that a daemon holds, "
        "with N threads",
    )
    parser.add_argument(
        "--where",
        action="store_true",
        help="tell where in the guest's address space what is, and which ranges are misplaced; "
        "every page is looked at, as with --full",
    )
    parser.add_argument(
        "--svg",
        type=Path,
        metavar="FILE",
        help="draw that as a picture, too (an SVG file, written whole or not at all)",
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument(
        "--format",
        choices=("text", "json", "prometheus"),
        default="text",
        help="prometheus is for node_exporter's textfile collector (default: %(default)s)",
    )
    shape.add_argument(
        "--json",
        action="store_const",
        dest="format",
        const="json",
        help="the same as --format json",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.prom",
        help="with --format prometheus: write this file, whole or not at all",
    )
    parser.add_argument(
        "--socket",
        type=Path,
        default=DEFAULT_SOCKET,
        metavar="PATH",
        help="the daemon's socket (default: %(default)s)",
    )


def _read_by(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """Read an argument with a parser of YAML's scalars, as argparse wants it."""

    def read(text: str) -> _T:
        try:
            return parse(text)
        except FieldError as error:
            hint = f" ({error.hint})" if error.hint else ""
            raise argparse.ArgumentTypeError(f"{error.message}, not {text}{hint}") from error

    return read


def run(args: argparse.Namespace) -> int:
    """Audit, print, and tell by the exit code: 1 drift, 5 part of it could not be seen."""
    _check_options(args)
    if args.margin is not None:
        args.sample = _pages_for(args.margin, args.confidence)
    args.where = args.where or args.svg is not None
    args.full = args.full or args.where
    unasked: GmemdError | None = None
    pid = None
    if args.vm is not None and args.format != "prometheus":
        try:
            known = _known_to_daemon(args)
        except (NoDaemonError, RefusedError) as error:
            unasked, known = error, None
        if known is not None and known.get("public"):
            unasked, known = error_of("Audit", "PermissionDenied", {}), None
        if known is not None:
            running = known.get("running")
            if running is None or not (args.full or args.sample or running["unknown"]):
                from gmemd.cli.audit_daemon import audit_by_daemon  # noqa: PLC0415  only there

                return audit_by_daemon(args)
            pid = running["pid"]
    looked = _look(args, pid, unasked)
    if args.svg is not None:
        write_svg(args.svg, looked.vms_json)
    if args.format == "prometheus":
        _export(args.output, looked.prometheus())
    elif args.format == "json":
        print_json(looked.to_json() if args.all else looked.vms_json[0])
    else:
        looked.print(console(), where=args.where)
    return int(exit_code(looked.vms_json, not_all=looked.sees_not_all))


def _pages_for(margin: float, confidence: float | None) -> int:
    """Give how many pages of a region tell its shares so exactly. Raises OptionError."""
    from gmemd.audit.model import CONFIDENCE  # noqa: PLC0415  only where a margin is asked for
    from gmemd.audit.sampling import pages_for  # noqa: PLC0415  as above

    pages = max(LEAST_SAMPLE_PAGES, pages_for(margin, confidence or CONFIDENCE))
    if pages > MOST_SAMPLE_PAGES:
        raise OptionError(
            f"a margin of {margin:.3%} takes {pages} pages of each region at that confidence, and "
            f"{MOST_SAMPLE_PAGES} are drawn at most",
            hint="use a wider margin, or --full",
        )
    return pages


def write_svg(path: Path, vms: Sequence[Mapping[str, Any]]) -> None:
    """Draw VMs that were audited with where; replaces the file. Raises TextfileError."""
    from gmemd.export.svg import render_svg  # noqa: PLC0415  only where there is a picture
    from gmemd.export.textfile import write_textfile  # noqa: PLC0415  as above

    write_textfile(path, render_svg(vms).encode())


def _check_options(args: argparse.Namespace) -> None:
    where = "--svg" if args.svg is not None else "--where" if args.where else ""
    every_page = where or ("--full" if args.full else "")
    for option in ("sample", "margin", "confidence"):
        if every_page and getattr(args, option) is not None:
            raise OptionError(f"{every_page} looks at every page", hint=f"leave --{option} out")
    if args.jobs is not None and not every_page:
        raise OptionError(
            "-j is for looking at every page: a sample takes one thread a moment",
            hint="add --full, or leave -j out",
        )
    if where and args.format == "prometheus":
        raise OptionError(
            f"{where} is not for --format prometheus: metrics have no addresses",
            hint="use --json for other programs",
        )
    if args.output is None:
        return
    from gmemd.export.textfile import SUFFIX  # noqa: PLC0415  only where there is a file

    if args.format != "prometheus":
        raise OptionError(
            f"--output {args.output} is for --format prometheus",
            hint="redirect the output for other formats",
        )
    if args.output.suffix != SUFFIX:
        raise OptionError(
            f"--output {args.output}: its name must end in {SUFFIX}",
            hint="node_exporter's textfile collector reads no other files",
        )


def _look(args: argparse.Namespace, pid: int | None, unasked: GmemdError | None) -> Looked:
    """Look at VMs here.

    ``pid`` is that of the VM, where a daemon tells; ``unasked`` is why none could be asked.
    """
    from gmemd.cli.audit_running import look  # noqa: PLC0415  what only an audit here needs

    try:
        return look(args, pid)
    except NoSuchVmError as error:
        if unasked is None:
            raise
        if isinstance(unasked, RefusedError):
            raise unasked from error
        raise NoSuchVmError(f"{error.message}, and {unasked.message}", hint=error.hint) from error


def _known_to_daemon(args: argparse.Namespace) -> dict[str, Any] | None:
    """The VM of that name as a daemon has it. Raises where none can be asked."""
    vms: list[dict[str, Any]] = call(args.socket, "List")["vms"]
    return next((vm for vm in vms if vm["vm"] == args.vm), None)


def _export(output: Path | None, content: bytes) -> None:
    from gmemd.export.textfile import write_textfile  # noqa: PLC0415  as above

    if output is None:
        print(content.decode(), end="")
    else:
        write_textfile(output, content)


def exit_code(vms: Sequence[Mapping[str, Any]], *, not_all: bool = False) -> Exit:
    """Return the verdict on audited VMs' JSON; drift outranks what could not be seen.

    ``not_all`` says that there may be more VMs.
    """
    if any(vm["drifting"] for vm in vms):
        return Exit.DRIFT
    reasons = [vm["running"]["unknown"] for vm in vms if vm.get("running") is not None]
    if reasons and all(reason == "not_permitted" for reason in reasons):
        return Exit.NOT_PERMITTED
    if not_all or any(map(_is_unseen, vms)):
        return Exit.UNSEEN
    return Exit.OK


def _is_unseen(vm: Mapping[str, Any]) -> bool:
    """Whether some of a VM's memory was not seen."""
    running = vm.get("running")
    if vm["audit"] is None or (running is not None and running["unknown"]):
        return True
    drifts = [guest_node["drift"] for guest_node in vm["guest_nodes"]]
    return any(drift is None or drift["unknown"] for drift in drifts)
