"""Builds the kernel extension; everything else is in pyproject.toml."""

from setuptools import setup

setup(
    cffi_modules=["gmemd/kernel/build.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
