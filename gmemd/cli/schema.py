"""``gmemd schema``: the JSON Schemas of VM specs, of the configuration and of web.yaml."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

HELP = (
    "Print the JSON Schema of VM specs (vm), of the daemon's configuration (config) or of web.yaml "
    "(web), which editors check YAML against; without a name all, in one object."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which schema is printed."""
    parser.add_argument(
        "name", nargs="?", choices=("vm", "config", "web"), help="which one; default all"
    )
    parser.add_argument(
        "--json", action="store_true", help="accepted everywhere; it always is JSON"
    )


def run(args: argparse.Namespace) -> int:
    """Print the schema, or all."""
    from gmemd.cli.output import print_json  # noqa: PLC0415  the schemas need pydantic
    from gmemd.spec.schema import config_schema, vm_schema, web_schema  # noqa: PLC0415  as above

    if args.name == "vm":
        print_json(vm_schema())
    elif args.name == "config":
        print_json(config_schema())
    elif args.name == "web":
        print_json(web_schema())
    else:
        schemas = {"vm": vm_schema(), "config": config_schema(), "web": web_schema()}
        print_json({"version": 1} | schemas)
    return 0
