"""``gmemd check``: validate VM specs and configuration files, and show each problem in its line."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmemd.cli.output import console, print_json
from gmemd.errors import Exit, GmemdError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from gmemd.spec.loading import Loaded
    from gmemd.spec.model import VmSpec
    from gmemd.spec.problems import Problem

HELP = (
    "Validate VM specs (files, or directories of them; - is stdin) and show every problem with its "
    "line. Without a path: the installed configuration, the web.yaml that it names, and all its VM "
    "specs, whose host nodes are then compared with this host's. Exits 2 for a problem, 3 if only "
    "the host can't."
)

_JSON_VERSION = 1
_EXCERPT_WIDTH = 96
_CONFIG_STEM, _WEB_STEM = "gmemd", "web"


@dataclass(slots=True)
class _Findings:
    """What was checked and what was found, gathered file by file."""

    n_files: int = 0
    specs: list[VmSpec] = field(default_factory=list)
    configs: list[str] = field(default_factory=list)
    webs: list[tuple[str, str]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    shadowed: list[tuple[Path, Path]] = field(default_factory=list)
    impossible: list[tuple[VmSpec, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> Exit:
        """2 for any problem; 3 where all is valid and this host can't do some of it."""
        if self.problems:
            return Exit.USAGE
        return Exit.HOST if self.impossible else Exit.OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is checked, and how it is shown."""
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="a VM spec, a directory of them, gmemd.yaml, web.yaml, or - for a VM spec on stdin",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="check this configuration")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Check, and print what was found."""
    found = _Findings()
    if args.paths:
        if args.config:
            _check_config(found, args.config)
        for path in args.paths:
            _check_path(found, path)
    else:
        _check_installed(found, args.config)
    if args.json:
        print_json(_to_json(found))
    else:
        _show(found, console())
    return int(found.exit_code)


def _attempt(found: _Findings, check: Callable[[], None]) -> None:
    """Do one check; the problems that stop it are kept, and the next one goes on."""
    from gmemd.spec.problems import SpecError  # noqa: PLC0415  --help needs none of it

    try:
        check()
    except SpecError as error:
        found.problems += error.problems


def _check_installed(found: _Findings, config_path: Path | None) -> None:
    """Check the configuration, then the directories that it (or else the default one) names."""
    from gmemd.spec.config import CONFIG_PATH, DaemonConfig, load_config  # noqa: PLC0415  as above
    from gmemd.spec.problems import SpecError  # noqa: PLC0415  as above

    config = DaemonConfig()
    try:
        config = load_config(config_path)
        if config_path or CONFIG_PATH.exists():
            found.configs.append(str(config_path or CONFIG_PATH))
            found.n_files += 1
        else:
            found.notes.append(f"{CONFIG_PATH} does not exist: the defaults hold")
    except SpecError as error:
        found.problems += error.problems
        found.n_files += 1
        found.notes.append("the configuration is bad: the default directories were checked")
    if config.metrics.web_config is not None:
        _check_web(found, config.metrics.web_config)
    _attempt(found, lambda: _check_directories(found, config.vms_directories))
    _compare_with_host(found)


def _check_config(found: _Findings, path: Path) -> None:
    from gmemd.spec.config import load_config  # noqa: PLC0415  as above

    webs: list[Path] = []

    def check() -> None:
        config = load_config(path)
        found.configs.append(str(path))
        if config.metrics.web_config is not None:
            webs.append(config.metrics.web_config)

    found.n_files += 1
    _attempt(found, check)
    for web in webs:
        _check_web(found, web)


def _check_web(found: _Findings, path: Path) -> None:
    from gmemd.cli.check_web import check_web  # noqa: PLC0415  as above

    def check() -> None:
        words, warnings = check_web(path)
        found.webs.append((str(path), words))
        found.warnings += warnings

    found.n_files += 1
    _attempt(found, check)


def _check_path(found: _Findings, path: str) -> None:
    from gmemd.spec.loading import load_spec, parse_spec  # noqa: PLC0415  as above
    from gmemd.spec.yamltree import LARGEST_FILE  # noqa: PLC0415  as above

    def check() -> None:
        if path == "-":
            data = sys.stdin.buffer.read(LARGEST_FILE + 1)
            found.specs.append(parse_spec(data, file="<stdin>"))
        else:
            found.specs.append(load_spec(path))

    if Path(path).is_dir():
        _attempt(found, lambda: _check_directories(found, [Path(path)]))
        return
    kind = _kind(path)
    if kind == _CONFIG_STEM:
        _check_config(found, Path(path))
    elif kind == _WEB_STEM:
        _check_web(found, Path(path))
    else:
        found.n_files += 1
        _attempt(found, check)


def _kind(path: str) -> str:
    """What a file is: gmemd or web by its name, unless it is a VM of that name; web by its keys."""
    from gmemd.spec.loading import read_file  # noqa: PLC0415  as above
    from gmemd.spec.problems import SpecError  # noqa: PLC0415  as above
    from gmemd.spec.web import WebConfig  # noqa: PLC0415  as above
    from gmemd.spec.yamltree import read_document  # noqa: PLC0415  as above

    if path == "-":
        return ""
    stem = Path(path).stem
    try:
        tree = read_document(read_file(Path(path)), path).tree
    except SpecError:
        return stem
    keys = tree.keys() if isinstance(tree, dict) else set()
    if keys & {"vm", "guest_nodes", "source"}:
        return ""
    return _WEB_STEM if keys & WebConfig.model_fields.keys() else stem


def _check_directories(found: _Findings, directories: Sequence[Path]) -> None:
    from gmemd.spec.loading import load_directory  # noqa: PLC0415  as above

    loaded: Loaded = load_directory(directories)
    found.n_files += loaded.n_files
    found.specs += loaded.specs
    found.problems += loaded.problems
    found.shadowed += loaded.shadowed
    if not loaded.n_files:
        names = ", ".join(map(str, directories))
        found.notes.append(f"no VM specs (*.yaml, *.yml) in {names}")


def _compare_with_host(found: _Findings) -> None:
    from gmemd.host.reading import read_host  # noqa: PLC0415  as above
    from gmemd.plan.checks import check_against_host  # noqa: PLC0415  as above

    if not found.specs:
        return
    try:
        host = read_host(probe=False)
    except GmemdError as error:
        found.notes.append(f"not compared with this host: {error.message}")
        return
    found.impossible += [
        (spec, message) for spec in found.specs for message in check_against_host(spec, host)
    ]


def _show(found: _Findings, out: Console) -> None:
    """Print problems first, then what is valid and what should be known about it."""
    for problem in found.problems:
        _show_problem(problem, out)
    for path, earlier in found.shadowed:
        _line(out, f"{path}: not read: {earlier} stands in its place", "yellow")
    for spec, message in found.impossible:
        _line(out, f"{spec.path}: not on this host: {message}", "red")
    for config in found.configs:
        _line(out, f"{config}: valid configuration", "green")
    for web, words in found.webs:
        _line(out, f"{web}: valid web configuration: {words}", "green")
    for spec in found.specs:
        _show_spec(spec, out)
    for warning in found.warnings:
        _line(out, f"warning: {warning}", "yellow")
    for note in found.notes:
        _line(out, f"note: {note}", "dim")
    _line(out, _summary(found), "bold")


def _show_problem(problem: Problem, out: Console) -> None:
    from rich.text import Text  # noqa: PLC0415  rich is imported only where something is drawn

    place = problem.place
    out.print(Text.assemble((place, "bold"), (str(problem)[len(place) :], "red")), soft_wrap=True)
    if problem.source:
        code, caret = excerpt(problem.source, problem.column, problem.width)
        margin = f"{problem.line:>5} | "
        out.print(Text.assemble((margin, "dim"), code), soft_wrap=True)
        out.print(
            Text.assemble((f"{'| ':>{len(margin)}}", "dim"), (caret, "bold red")), soft_wrap=True
        )
    if problem.hint:
        out.print(Text.assemble(("      hint: ", "cyan"), problem.hint), soft_wrap=True)


def excerpt(line: str, column: int, width: int) -> tuple[str, str]:
    """Return a line of source, cut around the place if it is long, and the carets below it."""
    from gmemd.spec.problems import printable  # noqa: PLC0415  --help needs none of it

    start = 0
    if len(line) > _EXCERPT_WIDTH:
        start = max(0, min(column - _EXCERPT_WIDTH // 3, len(line) - _EXCERPT_WIDTH))
    end = start + _EXCERPT_WIDTH
    before = printable(line[start : column - 1], longest=None)
    meant = printable(line[column - 1 : min(end, column - 1 + width)], longest=None)
    after = printable(line[column - 1 + width : end], longest=None)
    head, tail = "…" if start else "", "…" if end < len(line) else ""
    indent = " " * (len(head) + len(before))
    return f"{head}{before}{meant}{after}{tail}".rstrip(), f"{indent}^{'~' * (len(meant) - 1)}"


def _show_spec(spec: VmSpec, out: Console) -> None:
    from gmemd.spec.model import waiting_reason  # noqa: PLC0415  as above
    from gmemd.spec.sizes import format_size  # noqa: PLC0415  as above

    n_nodes = len(spec.guest_nodes)
    nodes = f"{n_nodes} guest node{'' if n_nodes == 1 else 's'}"
    reason = waiting_reason(spec)
    state = f"; it {reason}" if reason else ""
    size = f", {format_size(spec.size_bytes)}" if n_nodes else ""
    _line(
        out,
        f"{spec.path}: valid: {spec.vm}, {nodes}{size}{state}",
        "green",
    )


def _summary(found: _Findings) -> str:
    n_problems = len(found.problems)
    if not found.n_files and not n_problems:
        return "Nothing to check."
    n_bad = len({problem.file for problem in found.problems})
    files = f"{found.n_files} file{'' if found.n_files == 1 else 's'} checked"
    if n_problems:
        things = f"{n_problems} problem{'' if n_problems == 1 else 's'}"
        return f"{files}: {things} in {n_bad}."
    if found.impossible:
        n_impossible = len({spec.vm for spec, _ in found.impossible})
        return f"{files}: all valid, but {n_impossible} can't be placed on this host."
    return f"{files}: all valid."


def _line(out: Console, text: str, style: str) -> None:
    out.print(text, style=style, soft_wrap=True)


def problem_to_json(problem: Problem) -> dict[str, Any]:
    """Spell a problem as JSON; line and column are null where the file has no such place."""
    return {
        "file": problem.file,
        "line": problem.line or None,
        "column": problem.column or None,
        "key": problem.key or None,
        "value": problem.value,
        "message": problem.message,
        "hint": problem.hint,
    }


def _to_json(found: _Findings) -> dict[str, Any]:
    from gmemd.spec.model import waiting_reason  # noqa: PLC0415  as above

    return {
        "version": _JSON_VERSION,
        "valid": not found.problems,
        "files": found.n_files,
        "configs": found.configs,
        "web_configs": [path for path, _ in found.webs],
        "vms": [
            {
                "vm": spec.vm,
                "file": spec.path,
                "source": spec.source,
                "waiting": waiting_reason(spec),
            }
            for spec in found.specs
        ],
        "problems": [problem_to_json(problem) for problem in found.problems],
        "shadowed": [{"file": str(path), "by": str(earlier)} for path, earlier in found.shadowed],
        "impossible": [
            {"vm": spec.vm, "file": spec.path, "message": message}
            for spec, message in found.impossible
        ],
        "warnings": found.warnings,
        "notes": found.notes,
    }
