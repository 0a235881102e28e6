from __future__ import annotations

import io

from rich.console import Console

from gmemd.cli.lines import print_line


def printed(*, terminal: bool, indent: int = 0, label: str = "", text: str) -> str:
    out = Console(file=io.StringIO(), width=50, force_terminal=terminal, color_system=None)
    print_line(out, text, indent=indent, label=label)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def test_at_a_terminal_what_is_wrapped_hangs_below_the_text() -> None:
    text = "one two three four five six seven eight nine ten eleven"
    first, second, *rest = printed(terminal=True, indent=2, label="hint: ", text=text).splitlines()
    assert first.startswith("  hint: one two")
    assert second.startswith(" " * 8 + second.strip())
    assert rest == []


def test_elsewhere_a_line_stays_whole() -> None:
    assert printed(terminal=False, label="x: ", text="word " * 40) == f"x: {'word ' * 40}\n"


def test_paths_are_never_broken() -> None:
    path = "/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages"
    assert path in printed(terminal=True, indent=2, text=f"raise {path}")
