"""``gmemd run``: become a VMM that has its memory from the daemon."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from gmemd.cli.progress import progress_bar
from gmemd.client import DEFAULT_SOCKET, Client
from gmemd.errors import Exit, GmemdError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gmemd.client import Memory, Progress

HELP = (
    "Waits until the daemon has a VM's memory, then becomes CMD (exec), which holds the memory: "
    "its file descriptors are open in CMD, and {fd:0}, {fd:1} … in CMD's arguments become their "
    "numbers. The memory of guest nodes comes in the spec's order, each file once. When CMD exits "
    "the memory is released, or kept as the spec says."
)

_PLACEHOLDER = re.compile(r"\{fd:(\d+)\}")
_CGROUPS = Path("/sys/fs/cgroup")


class RunError(GmemdError):
    """The command can't be run as it is given."""

    exit_code = Exit.USAGE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommand's arguments."""
    parser.usage = "gmemd run [-h] [--timeout S] [--spec FILE] [--socket PATH] VM -- CMD ..."
    parser.add_argument("vm", metavar="VM", help="the VM whose memory CMD gets")
    parser.add_argument(
        "command",
        nargs=argparse.PARSER,
        metavar="CMD",
        help="the VMM and its arguments, such as -object "
        "memory-backend-file,id=m0,size=16G,share=on,mem-path=/proc/self/fd/{fd:0}",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="S",
        help="wait for so many seconds at most (default: until the memory is there)",
    )
    parser.add_argument(
        "--spec",
        type=Path,
        metavar="FILE",
        help="the spec of a VM that the daemon has no file for; it is forgotten with the memory",
    )
    parser.add_argument(
        "--socket",
        type=Path,
        default=DEFAULT_SOCKET,
        metavar="PATH",
        help=f"the daemon's socket (default: {DEFAULT_SOCKET})",
    )


def _seconds(text: str) -> float:
    """Read a time, as argparse wants it."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"must be a time in seconds, not {text}")
    return seconds


def run(args: argparse.Namespace) -> int:
    """Acquire the memory and become the command."""
    command = args.command[1:] if args.command[0] == "--" else args.command
    if not command:
        raise RunError(
            f"no command to run with the memory of {args.vm}", hint=f"gmemd run {args.vm} -- CMD"
        )
    program = shutil.which(command[0])
    if program is None:
        raise RunError(f"there is no program {command[0]!r}", hint="name it by its path")
    with _acquired(args) as memory:
        for warning in memory.warnings:
            print(f"gmemd: {args.vm}: {warning}", file=sys.stderr)
        become(program, with_fds(command, memory.fds), memory.fds)


def _acquired(args: argparse.Namespace) -> Memory:
    """Wait for the memory; at a terminal, show how far it is."""
    spec = _read(args.spec) if args.spec is not None else None
    with contextlib.ExitStack() as stack:
        cgroup = own_cgroup_procs()
        if cgroup is not None:
            stack.callback(os.close, cgroup)
        note = stack.enter_context(progress_bar(f"{args.vm}: waiting for its memory"))

        def show(progress: Progress) -> None:
            if note is not None:
                why = f": {progress.message}" if progress.message else ""
                note(progress.ratio, f"{args.vm}: {progress.state}{why}")

        return Client(args.socket).acquire(
            args.vm,
            timeout_seconds=args.timeout,
            cgroup=cgroup,
            spec=spec,
            progress=show if note is not None else None,
        )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"reading {path}: {why}") from error


def own_cgroup_procs() -> int | None:
    """The cgroup.procs of this process's cgroup v2, open for writing; None where it can't be."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        own = next(line.removeprefix("0::") for line in lines if line.startswith("0::"))
        path = _CGROUPS / own.lstrip("/") / "cgroup.procs"
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except (OSError, StopIteration):
        return None


def with_fds(command: Sequence[str], fds: Sequence[int]) -> list[str]:
    """The command with fds' numbers for their placeholders. Raises RunError for one too many."""

    def number(placeholder: re.Match[str]) -> str:
        index = int(placeholder[1])
        if index >= len(fds):
            last = f"{{fd:0}} to {{fd:{len(fds) - 1}}}" if len(fds) > 1 else "{fd:0} alone"
            raise RunError(
                f"{placeholder[0]}: there is no such file descriptor",
                hint=f"the VM's memory has {last if fds else 'none'}",
            )
        return str(fds[index])

    return [_PLACEHOLDER.sub(number, word) for word in command]


def become(program: str, command: list[str], fds: Sequence[int]) -> NoReturn:
    """Replace this process by a program that has just these fds beside the standard ones."""
    for fd in fds:
        os.set_inheritable(fd, True)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores, and exec would pass on
        signal.signal(number, signal.SIG_DFL)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execv(program, command)  # noqa: S606  no shell is what is wanted
    except OSError as error:
        raise RunError(f"running {program}: {error.strerror}") from error
