"""The extension, its declarations and its stub say the same, and the C keeps to its rules."""

import ast
import re
from pathlib import Path

from gmemd.kernel import _kernel

KERNEL = Path(_kernel.__file__).parent
DECLARED = (KERNEL / "cdef.h").read_text()


def declared_functions() -> dict[str, int]:
    """Functions of cdef.h, and how many arguments each has."""
    found = re.findall(r"^int64_t (gm_\w+)\((.*?)\);", DECLARED, re.DOTALL | re.MULTILINE)
    return {name: arguments.count(",") + 1 for name, arguments in found}


def stub_class() -> ast.ClassDef:
    tree = ast.parse((KERNEL / "_kernel.pyi").read_text())
    return next(
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "_Lib"
    )


def test_the_extension_is_for_every_python_from_3_11() -> None:
    assert _kernel.__file__.endswith(".abi3.so")


def test_the_stub_has_every_function_with_its_arguments() -> None:
    stub = {
        node.name: len(node.args.args) - 1
        for node in stub_class().body
        if isinstance(node, ast.FunctionDef)
    }
    assert stub == declared_functions()
    assert set(stub) <= set(dir(_kernel.lib))


def test_the_stub_has_every_number() -> None:
    stub = {
        node.target.id
        for node in stub_class().body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    assert stub == set(re.findall(r"^#define (GM_\w+) \.\.\.$", DECLARED, re.MULTILINE))


def test_pages_are_never_asked_to_move_by_a_policy_call() -> None:
    """MPOL_MF_MOVE moves no guest_memfd page and MPOL_MF_STRICT proves nothing: neither exists."""
    package = KERNEL.parent
    sources = [*package.rglob("*.py"), *package.rglob("*.[ch]"), *package.rglob("*.pyi")]
    assert len(sources) > 10
    assert [path.name for path in sources if "MPOL_MF" in path.read_text()] == []
