"""What can be wrong with a host, or with a recorded tree that stands for one."""

from __future__ import annotations

from gmemd.errors import Exit, GmemdError


class HostError(GmemdError):
    """The host can't be read, or isn't one that gmemd can work with."""

    exit_code = Exit.HOST
