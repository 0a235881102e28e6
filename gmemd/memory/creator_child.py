"""The creator process: one KVM VM, and as many guest_memfds of it as are asked for."""

from __future__ import annotations

import socket

from gmemd.kernel.errors import KernelError
from gmemd.kernel.kvm import Kvm, KvmVm
from gmemd.memory import child


def main(channel_fd: int, parent_pid: int) -> None:
    """Answer requests {sizes, flags} with guest_memfds until the channel is closed."""
    child.tie_to_parent(parent_pid)
    with socket.socket(fileno=channel_fd) as channel:
        try:
            with Kvm() as kvm, kvm.create_vm() as vm:
                _serve(channel, vm)
        except KernelError as error:
            child.receive(channel)
            child.send(channel, {"error": child.error_to_message(error)})


def _serve(channel: socket.socket, vm: KvmVm) -> None:
    while True:
        try:
            request, _ = child.receive(channel)
        except child.ChildError:
            return
        fds: list[int] = []
        try:
            for size_bytes in request["sizes"]:
                fds.append(vm.create_guest_memfd(size_bytes, request["flags"]))  # noqa: PERF401 - those made are closed on a failure
            child.send(channel, {}, fds)
        except KernelError as error:
            child.send(channel, {"error": child.error_to_message(error)})
        finally:
            child.close_all(fds)
