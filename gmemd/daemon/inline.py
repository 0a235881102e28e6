"""VM specs that came with a call: kept as files beside the operator's, for as long as the memory.

They are volatile, as the VMs are: the directory is below /run unless the configuration says else.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from gmemd.errors import Exit, GmemdError
from gmemd.spec.loading import parse_spec

if TYPE_CHECKING:
    from pathlib import Path

    from gmemd.spec.model import VmSpec


_ENDING = ".yaml"


class InlineSpecError(GmemdError):
    """An inline spec can't be kept."""

    exit_code = Exit.HOST


def encoded(text: str) -> bytes:
    """The bytes of a spec that came as JSON, which may hold what is no text: not UTF-8 then."""
    return text.encode(errors="surrogatepass")


class InlineSpecs:
    """The directory of inline specs. All methods but ``has`` block.

    That is asked of every VM in every pass, so it makes no paths.
    """

    def __init__(self, state_directory: Path) -> None:
        self.directory = state_directory / "vms.d"
        self._beginning = f"{self.directory}/"

    def has(self, spec: VmSpec | None) -> bool:
        """Whether a spec is one of these."""
        return spec is not None and spec.path == f"{self._beginning}{spec.vm}{_ENDING}"

    def parse(self, vm: str, text: str) -> VmSpec:
        """Read a spec as the one that would be kept; raises SpecError with all that is wrong."""
        return parse_spec(encoded(text), file=str(self._path(vm)), stem=vm)

    def store(self, vm: str, text: str) -> None:
        """Keep a spec that was parsed, whole or not at all; raises InlineSpecError."""
        path = self._path(vm)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            self.directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise InlineSpecError(
                f"keeping the spec in {path}: {error.strerror or error}",
                hint="make state_directory in gmemd.yaml one that gmemd may write to",
            ) from error

    def forget(self, vm: str) -> None:
        """Keep a spec no longer. Harmless when repeated; raises InlineSpecError."""
        path = self._path(vm)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise InlineSpecError(f"removing {path}: {error.strerror or error}") from error

    def _path(self, vm: str) -> Path:
        return self.directory / f"{vm}{_ENDING}"
