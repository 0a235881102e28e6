"""``gmemd schema``: the JSON Schemas of VM specs and of the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

HELP = (
    "Print the JSON Schema of VM specs (vm) or of the daemon's configuration (config), which "
    "editors check YAML against; without a name both, in one object."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which schema is printed."""
    parser.add_argument("name", nargs="?", choices=("vm", "config"), help="which one; default both")
    parser.add_argument(
        "--json", action="store_true", help="accepted everywhere; it always is JSON"
    )


def run(args: argparse.Namespace) -> int:
    """Print the schema, or both."""
    from gmemd.cli.output import print_json  # noqa: PLC0415  the schemas need pydantic
    from gmemd.spec.schema import config_schema, vm_schema  # noqa: PLC0415  as above

    if args.name == "vm":
        print_json(vm_schema())
    elif args.name == "config":
        print_json(config_schema())
    else:
        print_json({"version": 1, "vm": vm_schema(), "config": config_schema()})
    return 0
