"""Builds ``gmemd.kernel._kernel``: one abi3 extension for CPython 3.11 and later.

Run as a program it builds the extension in place, for a checkout.
"""

import shutil
import tempfile
from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).resolve().parent

ffibuilder = FFI()
ffibuilder.cdef((_HERE / "cdef.h").read_text())
ffibuilder.set_source(
    "gmemd.kernel._kernel",
    "\n".join((_HERE / name).read_text() for name in ("kernel.c", "scan.c", "kept.c")),
    py_limited_api=True,
    define_macros=[("Py_LIMITED_API", "0x030b0000")],
    extra_compile_args=["-O2", "-Wall", "-Wextra", "-Werror=implicit-function-declaration"],
)

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(ffibuilder.compile(tmpdir=scratch))
        fresh = _HERE / f".{built.name}"
        shutil.copy2(built, fresh)
        fresh.replace(_HERE / built.name)
