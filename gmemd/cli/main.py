"""The command line's frame: subcommands found by name, errors turned into text and exit codes."""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import sys
import traceback
from typing import TYPE_CHECKING, NamedTuple, NoReturn, Protocol, cast

import gmemd
from gmemd.errors import Exit, GmemdError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Subcommand(NamedTuple):
    """A subcommand's module and the line that ``gmemd --help`` gives it."""

    module: str
    help: str


class SubcommandModule(Protocol):
    """What a subcommand's module offers."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the subcommand's own arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; the result is the exit code."""


SUBCOMMANDS = {
    "daemon": Subcommand("gmemd.cli.daemon", "the service: places, audits and exports"),
    "status": Subcommand("gmemd.cli.status", "where every VM's memory is, guest node by host node"),
    "run": Subcommand("gmemd.cli.run", "start a VMM with its memory from the daemon"),
    "adopt": Subcommand("gmemd.cli.adopt", "place the memory of a VM that runs already"),
    "release": Subcommand("gmemd.cli.release", "give a VM's memory back"),
    "reload": Subcommand("gmemd.cli.reload", "make the daemon read its VM specs again"),
    "host": Subcommand("gmemd.cli.host", "host nodes and kernel features: what works here"),
    "check": Subcommand("gmemd.cli.check", "validate VM specs and the daemon's config"),
    "plan": Subcommand("gmemd.cli.plan", "what would be placed where, and whether it fits"),
    "audit": Subcommand("gmemd.cli.audit", "one audit now: where the pages really are"),
    "schema": Subcommand("gmemd.cli.schema", "JSON Schemas of VM specs and config, for editors"),
}

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})

EXIT_CODES = (
    "exit codes: 0 well; 1 drift; 2 usage or bad spec; 3 the host can't, or it doesn't fit; "
    "4 no daemon; 5 part of it could not be seen; 6 not permitted; 70 internal error"
)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors look like all others of gmemd."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error, and exit with the usage code."""
        self.print_usage(sys.stderr)
        print(f"gmemd: {message}", file=sys.stderr)
        print(f"hint: {self.prog} --help", file=sys.stderr)
        sys.exit(Exit.USAGE)


def _load(name: str) -> SubcommandModule:
    """Import a subcommand's module; nothing else of the command line is imported with it."""
    return cast("SubcommandModule", importlib.import_module(SUBCOMMANDS[name].module))


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """Return the parser; only the chosen subcommand's module is imported and asked."""
    parser = _Parser(
        prog="gmemd",
        description="Places KVM guests' memory on host NUMA nodes and shows where every page is.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"gmemd {gmemd.__version__}")
    subparsers = parser.add_subparsers(
        dest="subcommand", metavar="COMMAND", required=True, parser_class=_Parser
    )
    for name, subcommand in SUBCOMMANDS.items():
        if name != chosen:
            subparsers.add_parser(name, help=subcommand.help)
            continue
        module = _load(name)
        module.add_arguments(
            subparsers.add_parser(name, help=subcommand.help, description=module.HELP)
        )
    return parser


def print_error(error: GmemdError) -> None:
    """Write what failed, and the way out where one is known, to stderr."""
    print(f"gmemd: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


def _discard_stdout() -> None:
    """Point stdout at /dev/null, so that the flush at exit doesn't fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _run(argv: Sequence[str]) -> int:
    """Parse and run; argparse's own exits come back as codes."""
    chosen = next((word for word in argv if word in SUBCOMMANDS), None)
    try:
        args = build_parser(chosen).parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    code = int(_load(args.subcommand).run(args))
    sys.stdout.flush()
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the result is the process's exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what the terminal's charset lacks
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except GmemdError as error:
        print_error(error)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _discard_stdout()
        return int(Exit.OK)
    except Exception as error:  # noqa: BLE001  the last resort: everything expected is a GmemdError
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            _discard_stdout()
            print(f"gmemd: output can't be written: {error.strerror}", file=sys.stderr)
            return int(Exit.HOST)
        if os.environ.get("GMEMD_TRACEBACK"):
            traceback.print_exc()
        print(f"gmemd: internal error: {type(error).__name__}: {error}", file=sys.stderr)
        print(
            "hint: this is a bug in gmemd; run it again with GMEMD_TRACEBACK=1 and report "
            "what it prints",
            file=sys.stderr,
        )
        return int(Exit.INTERNAL)
