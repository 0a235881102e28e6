"""Dependencies point one way, and modules stay of a size that one reads at a sitting."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
MODULES = sorted((REPOSITORY / "gmemd").rglob("*.py"))
LONGEST_MODULE_LINES = 400

# A layer may import itself and what stands here. The frozen values that one stage hands to the
# next (audit/model.py) belong to neither: drift reads them below audit, export beside it.
ABOVE: dict[str, set[str]] = {
    "cli": {"client", "daemon", "memory", "audit", "export", "drift", "plan", "host", "spec"},
    "daemon": {"memory", "audit", "export", "drift", "plan", "host", "spec"},
    "memory": {"plan", "host", "spec", "kernel"},
    "audit": {"plan", "drift", "host", "spec", "kernel"},
    "export": {"plan", "drift", "host", "spec", "audit.model"},
    "drift": {"plan", "host", "spec", "audit.model"},
    "plan": {"host", "spec"},
    "host": {"kernel"},
    "spec": set(),
    "kernel": set(),
    "client": set(),
    "audit.model": set(),
}
FREE_FOR_ALL = {"gmemd", "gmemd.errors"}
TOP = {"gmemd", "gmemd.__main__", "gmemd.errors"}


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module: str) -> str:
    parts = module.split(".")[1:]
    return ".".join(parts[:2]) if parts[:2] == ["audit", "model"] else parts[0]


def imports(path: Path) -> set[str]:
    """All modules of gmemd that the file imports, anywhere in it, for types or at run time."""
    known = {module_name(other) for other in MODULES} | {"gmemd.kernel._kernel"}
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else str(node.module) for name in names}
    return {name for name in found if name.split(".")[0] == "gmemd"}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_dependencies_point_one_way(path: Path) -> None:
    name = module_name(path)
    wanted = imports(path) - FREE_FOR_ALL
    if name in TOP:
        allowed = {"cli"} if name == "gmemd.__main__" else set()
    else:
        mine = layer(name)
        allowed = ABOVE[mine] | {mine}
        allowed |= {"audit.model"} if mine in {"cli", "daemon", "audit"} else set()
    wrong = {other for other in wanted if layer(other) not in allowed}
    assert not wrong, f"{name} may import {sorted(allowed)}, but imports {sorted(wrong)}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_modules_are_short(path: Path) -> None:
    n_lines = len(path.read_text().splitlines())
    assert n_lines <= LONGEST_MODULE_LINES, "split it: it has more than one subject"


def test_every_package_is_a_layer() -> None:
    packages = {path.parent.name for path in (REPOSITORY / "gmemd").glob("*/__init__.py")}
    assert packages == {name for name in ABOVE if "." not in name}
