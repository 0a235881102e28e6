"""The command line's frame: subcommands found by name, errors turned into text and exit codes."""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import sys

import gmemd
from gmemd.errors import Exit, GmemdError

TYPE_CHECKING = False  # that of typing, which takes as long to import as all the rest of this
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn, Protocol

    class SubcommandModule(Protocol):
        """What a subcommand's module offers."""

        HELP: str

        def add_arguments(self, parser: argparse.ArgumentParser) -> None:
            """Declare the subcommand's own arguments."""

        def run(self, args: argparse.Namespace) -> int:
            """Do it; the result is the exit code."""


class Subcommand:
    """A subcommand's module and the line that ``gmemd --help`` gives it."""

    def __init__(self, module: str, help_line: str) -> None:
        self.module = module
        self.help = help_line


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


class _Help(argparse.HelpFormatter):
    """Help as wide as the terminal, found out without importing shutil."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


def _columns() -> int:
    """The terminal's width; 80 where there is none."""
    try:
        told = int(os.environ.get("COLUMNS", "0"))
    except ValueError:
        told = 0
    try:
        return told if told > 0 else os.get_terminal_size(1).columns or 80
    except OSError:
        return 80


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors look like all others of gmemd."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401  argparse's own, passed on
        super().__init__(**options, formatter_class=_Help)

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error, and exit with the usage code."""
        self.print_usage(sys.stderr)
        print(f"gmemd: {message}", file=sys.stderr)
        print(f"hint: {self.prog} --help", file=sys.stderr)
        sys.exit(Exit.USAGE)


def _load(name: str) -> SubcommandModule:
    """Import a subcommand's module; nothing else of the command line is imported with it."""
    module: Any = importlib.import_module(SUBCOMMANDS[name].module)
    return module  # type: ignore[no-any-return]


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """Return the parser; only the chosen subcommand's module is imported and asked."""
    parser = _Parser(
        prog="gmemd",
        description="Places KVM guests' memory on host NUMA nodes and shows where every page is.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"gmemd {gmemd.__version__}")

    def parser_of(**options: Any) -> _Parser | None:  # noqa: ANN401  as above
        """The chosen subcommand's; nothing is read for the others, so they need none."""
        return _Parser(**options) if options["prog"] == f"{parser.prog} {chosen}" else None

    parsers: Any = parser_of
    subparsers = parser.add_subparsers(
        dest="subcommand", metavar="COMMAND", required=True, parser_class=parsers
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
            import traceback  # noqa: PLC0415  slow to import

            traceback.print_exc()
        print(f"gmemd: internal error: {type(error).__name__}: {error}", file=sys.stderr)
        print(
            "hint: this is a bug in gmemd; run it again with GMEMD_TRACEBACK=1 and report "
            "what it prints",
            file=sys.stderr,
        )
        return int(Exit.INTERNAL)
