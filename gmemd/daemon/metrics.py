"""The metrics' server as the configuration has it: where it listens, and what protects it."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

from gmemd.daemon.passed import METRICS
from gmemd.export.http import MetricsServer
from gmemd.export.listening import ListenError, bound, is_listening
from gmemd.export.web import Web

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gmemd.export.instruments import Counters
    from gmemd.export.snapshot import Snapshot
    from gmemd.spec.config import DaemonConfig, MetricsConfig


def metrics_server(
    config: DaemonConfig,
    passed: Iterable[int],
    get_snapshot: Callable[[], Snapshot],
    counters: Counters,
) -> MetricsServer:
    """A server on the passed sockets, or where there are none at the configured addresses.

    The passed ones are used or closed. Raises ListenError, and SpecError for a bad web.yaml.
    """
    with ExitStack() as stack:
        sockets = [stack.enter_context(_as_socket(fd)) for fd in passed]
        listen: Sequence[str | socket.socket] = config.metrics.listen
        if sockets:
            _check(sockets, config.metrics)
            listen = sockets
        path = config.metrics.web_config
        web = None if path is None else Web(path)
        server = MetricsServer(listen, get_snapshot, counters, web)
        stack.pop_all()
    return server


def _as_socket(fd: int) -> socket.socket:
    """The passed descriptor, as the listening socket that it has to be; else ListenError."""
    try:
        passed = socket.socket(fileno=fd)
    except OSError as error:
        os.close(fd)
        raise _wrong_kind() from error
    if not is_listening(passed):
        passed.close()
        raise _wrong_kind()
    return passed


def _wrong_kind() -> ListenError:
    return ListenError(
        f"what systemd passes as {METRICS} is no socket that listens for streams",
        hint=f"it is made by ListenStream= of {METRICS}.socket, with Accept=no",
    )


def _check(sockets: Sequence[socket.socket], config: MetricsConfig) -> None:
    """Raise ListenError where the configuration says an address, too."""
    if "listen" in config.model_fields_set:
        said = ", ".join(config.listen) or "[]"
        raise ListenError(
            f"gmemd.yaml says metrics: listen: {said}, and systemd listens for metrics at "
            f"{', '.join(map(bound, sockets))}",
            hint=f"leave listen: out, as the address is ListenStream= of {METRICS}.socket "
            f"(systemctl edit {METRICS}.socket); or have systemd listen no more: "
            f"systemctl mask --now {METRICS}.socket",
        )
