"""Builds the kernel extension, and tags the wheel; everything else is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel


class ManylinuxWheel(bdist_wheel):
    """A wheel tagged with the oldest glibc that its extension runs on, as PEP 600 has it.

    glibc's symbols carry the version that brought them, so the newest one that the extension asks
    for decides. On other C libraries the tag stays the building machine's.
    """

    def get_tag(self) -> tuple[str, str, str]:
        """Interpreter, ABI and platform; manylinux_2_N_ARCH where the extension was built."""
        interpreter, abi, platform = super().get_tag()
        minor = glibc_minor(self.get_finalized_command("build_ext").get_outputs())
        if minor is not None:
            platform = platform.replace("linux_", f"manylinux_2_{minor}_", 1)
        return interpreter, abi, platform


def glibc_minor(extensions: list[str]) -> int | None:
    """N of the newest symbol version GLIBC_2.N that any of the files names; None without any."""
    named = [
        int(minor)
        for path in map(Path, extensions)
        if path.exists()
        for minor in re.findall(rb"\0GLIBC_2\.(\d+)", path.read_bytes())
    ]
    return max(named, default=None)


setup(
    cffi_modules=["gmemd/kernel/build.py:ffibuilder"],
    cmdclass={"bdist_wheel": ManylinuxWheel},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
