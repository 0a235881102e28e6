"""`gmemd daemon`: the service."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

HELP = (
    "Places the memory of the VMs that have a spec, audits where it is, and answers on the varlink "
    "socket and under /metrics, until SIGTERM. SIGHUP reads the specs again."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommand's arguments."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the configuration (default: /etc/gmemd/gmemd.yaml where it exists)",
    )
    parser.add_argument("--debug", action="store_true", help="log more")


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    from gmemd.memory import cgroup  # noqa: PLC0415  before what follows takes memory

    cgroup.settle()
    from gmemd.daemon import logs, service  # noqa: PLC0415  heavy imports, for this command alone

    logs.configure(logging.DEBUG if args.debug else logging.INFO)
    return service.run(args.config)
