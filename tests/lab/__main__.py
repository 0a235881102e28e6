"""The command line of the lab: ``python -m tests.lab build | run | shell``."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import termios
import tty
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.lab.errors import LabError
from tests.lab.image import ensure_image, say
from tests.lab.machine import VARIANTS
from tests.lab.running import Lab, Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

LAB_FAILED = 125
"""Exit code for failures of the lab itself, as docker and git bisect use it."""


def main(arguments: list[str] | None = None) -> int:
    """Runs one subcommand; gives the exit code."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        return int(options.action(options))
    except LabError as error:
        print(error.explain(), file=sys.stderr)  # noqa: T201
        return LAB_FAILED
    except KeyboardInterrupt:
        return 130


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options, with the command after ``--`` in ``command``."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab",
        description="A hypervisor with four NUMA nodes, emulated: no KVM and no privileges needed.",
    )
    actions = parser.add_subparsers(required=True, metavar="build | run | shell")
    build = actions.add_parser("build", help="make the image now, if the cache has none")
    build.add_argument("--rebuild", action="store_true", help="make it anew in any case")
    build.set_defaults(action=_build)
    run = actions.add_parser("run", help="run a command inside, as root, in the checkout")
    _machine_arguments(run)
    run.add_argument(
        "--timeout", type=float, default=1800, metavar="S", help="seconds (default: 1800)"
    )
    run.add_argument("command", nargs="+", metavar="-- COMMAND", help="and its arguments")
    run.set_defaults(action=_run)
    shell = actions.add_parser("shell", help="a root shell inside")
    _machine_arguments(shell)
    shell.set_defaults(action=_shell)
    return parser.parse_args(arguments)


def _machine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--variant",
        choices=VARIANTS,
        default="default",
        help="movable: node 4 has only movable memory; systemd: as PID 1; old-kernel: one without"
        " inode policies (default: default)",
    )
    parser.add_argument(
        "--memory",
        type=int,
        default=1024,
        metavar="MIB",
        help="of each node, in MiB (default: 1024)",
    )


def _build(options: argparse.Namespace) -> int:
    image = ensure_image(rebuild=options.rebuild)
    say(f"image: {image.directory} (kernels: {', '.join(image.kernels())})")
    return 0


def _run(options: argparse.Namespace) -> int:
    with Lab(
        VARIANTS[options.variant],
        options.command,
        node_mebibytes=options.memory,
        stdout=sys.stdout.buffer,
        stderr=sys.stderr.buffer,
    ) as lab:
        return lab.wait(options.timeout)


def _shell(options: argparse.Namespace) -> int:
    if not sys.stdin.isatty():
        raise LabError("a shell needs a terminal", hint="use run for commands")
    say("booting; leave with exit")
    size = shutil.get_terminal_size()
    with (
        raw_terminal(sys.stdin.fileno()),
        Lab(
            VARIANTS[options.variant],
            ["bash", "-l"],
            node_mebibytes=options.memory,
            terminal=Terminal(size.lines, size.columns),
        ) as lab,
    ):
        return lab.wait(float("inf"))


@contextmanager
def raw_terminal(fd: int) -> Iterator[None]:
    """Every key goes inside, Ctrl-C too; the terminal is as before afterwards."""
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
        os.write(fd, b"\r\n")


if __name__ == "__main__":
    sys.exit(main())
