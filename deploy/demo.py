"""The demonstration that deploy/try.sh runs: a private daemon, demo VMs, and a look at them."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmemd.client.blocking import NoDaemonError, call
from gmemd.errors import GmemdError
from gmemd.host.reading import read_host

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gmemd.host.model import Host, HostNode

MIB = 1 << 20
PATIENCE_SECONDS = 600
SETTLED = {"ready", "degraded", "failed"}
STEADY = "web-01"
DRIFTING = "db-01"

SPEC = """\
version: 1
vm: {vm}
source: create
backend: {backend}
drift_tolerance: 1%
guest_nodes:
  - id: 0
    vcpus: 0-1
    memory: {first_mib}MiB
    host_nodes: {first_node}
    policy: bind
    distances: {{1: 21}}
  - id: 1
    vcpus: 2-3
    memory: {second_mib}MiB
    host_nodes: {second_node}
    policy: {second_policy}
"""

CONFIG = """\
version: 1
vms_directories: [{directory}/vms.d]
socket: {directory}/io.gmemd
discovery: false
metrics: {{listen: ["{address}"]}}
audit: {{interval: 10s}}
"""


def main(arguments: Sequence[str]) -> int:
    """Run the demonstration; gives the exit code."""
    parser = argparse.ArgumentParser(prog="deploy/try.sh")
    parser.add_argument("--once", action="store_true", help="exit when it has been shown")
    parser.add_argument("--lab", action="store_true", help="four nodes, one VM that drifts")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), tempfile.TemporaryDirectory(prefix="gmemd-") as at:
        directory = Path(at)
        address = free_address()
        write_files(directory, address, lab=options.lab)
        with daemon(directory) as process:
            vms = wait_until_settled(directory, process)
            show(directory, address, vms, lab=options.lab)
            code = verdict(directory, vms)
            if options.once:
                return code
            say("staying until Ctrl-C")
            process.wait()
            return fail(directory, "the daemon has ended")
    return 130


def write_files(directory: Path, address: str, *, lab: bool) -> None:
    """Write the configuration and the VM specs, sized for this machine."""
    host = read_host()
    backend, why = choose_backend(host)
    say(f"backend {backend}: {why}")
    nodes = [node for node in host.nodes if node.placeable_bytes]
    size_mib = modest_mib(nodes)
    first, second = nodes[0], nodes[min(1, len(nodes) - 1)]
    if first is second:
        say(f"this machine has one NUMA node: both guest nodes go to host node {first.id}")
    steady = {"first_mib": size_mib, "first_node": first.id, "second_mib": size_mib}
    steady |= {"second_node": second.id, "second_policy": "bind"}
    specs: dict[str, dict[str, Any]] = {STEADY: steady}
    if lab:
        small = nodes[-1]
        too_much_mib = small.total_bytes // MIB + 128
        say(f"{DRIFTING} prefers host node {small.id}, which is 128 MiB smaller than it: it spills")
        specs[DRIFTING] = steady | {
            "second_mib": too_much_mib,
            "second_node": small.id,
            "second_policy": "preferred",
        }
    (directory / "vms.d").mkdir()
    for vm, values in specs.items():
        text = SPEC.format(vm=vm, backend=backend, **values)
        (directory / "vms.d" / f"{vm}.yaml").write_text(text)
    (directory / "gmemd.yaml").write_text(CONFIG.format(directory=directory, address=address))


def choose_backend(host: Host) -> tuple[str, str]:
    """guest_memfd where this machine can make it, else memfd; and why."""
    for name in ("kvm", "guest_memfd"):
        feature = host.features.get(name)
        if feature is None or not feature.supported:
            detail = feature.detail if feature is not None else f"{name} was not probed"
            return "memfd", f"this machine can't make guest_memfd here: {detail}"
    if host.supports("inode_policy"):
        return "guest_memfd", "/dev/kvm makes it, and the kernel keeps policies on it"
    why = "the kernel keeps no policy on it, so a helper allocates it in place"
    return "guest_memfd", f"/dev/kvm makes it; {why}"


def modest_mib(nodes: Sequence[HostNode]) -> int:
    """MiB per guest node: a sixteenth of what is available, in eights, 8 to 128."""
    available = min(node.placeable_available_bytes for node in nodes[:2])
    return max(8, min(128, available // 16 // MIB // 8 * 8))


def free_address() -> str:
    """A loopback address whose port nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@contextlib.contextmanager
def daemon(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the daemon, its log in daemon.log, and end it as an operator would."""
    command = [sys.executable, "-m", "gmemd", "daemon", "--config", str(directory / "gmemd.yaml")]
    with (directory / "daemon.log").open("wb") as log:
        # In a session of its own, so that Ctrl-C reaches it by way of this process.
        process = subprocess.Popen(command, stderr=log, stdout=log, start_new_session=True)
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def wait_until_settled(
    directory: Path, process: subprocess.Popen[bytes]
) -> dict[str, dict[str, Any]]:
    """The VMs by name, once each is audited or has failed."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(fail(directory, "the daemon did not start"))
        with contextlib.suppress(NoDaemonError):
            vms = call(directory / "io.gmemd", "List")["vms"]
            if vms and all(settled(vm) for vm in vms):
                return {vm["vm"]: vm for vm in vms}
        time.sleep(0.2)
    raise SystemExit(fail(directory, f"the VMs are not ready after {PATIENCE_SECONDS} s"))


def settled(vm: dict[str, Any]) -> bool:
    """Whether nothing more is to be waited for."""
    return vm["state"] == "failed" or (vm["state"] in SETTLED and vm["audit"] is not None)


def show(directory: Path, address: str, vms: dict[str, dict[str, Any]], *, lab: bool) -> None:
    """Print `gmemd status`, more on what drifts, and the metrics' address with a taste of them."""
    status(directory)
    if any(vm["drifting"] or vm["state"] == "failed" for vm in vms.values()):
        for name, vm in vms.items():
            if vm["drifting"] or vm["state"] == "failed":
                status(directory, name)
    inside = " (inside the lab)" if lab else ""
    print(f"\nmetrics: http://{address}/metrics{inside}\n", flush=True)
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("GET", "/metrics")
    for line in connection.getresponse().read().decode().splitlines():
        if line.startswith("gmemd_guest_node_drift_ratio"):
            print(f"  {line}", flush=True)
    connection.close()


def status(directory: Path, *vm: str) -> None:
    """Print what `gmemd status` prints."""
    command = [sys.executable, "-m", "gmemd", "status", "--socket", str(directory / "io.gmemd")]
    print(f"\n$ gmemd {' '.join(('status', *vm))}\n", flush=True)
    if subprocess.run([*command, *vm], check=False).returncode:
        raise SystemExit(fail(directory, "gmemd status failed"))


def verdict(directory: Path, vms: dict[str, dict[str, Any]]) -> int:
    """0 if each VM is as it should be: placed, but for the one that is made to drift."""
    wrong = [name for name, vm in vms.items() if not as_expected(name, vm)]
    if wrong:
        return fail(directory, f"not as it should be: {', '.join(wrong)}")
    if DRIFTING in vms:
        say(f"all of {STEADY} is placed, and the drift of {DRIFTING} was found")
    else:
        say("all memory is where it should be")
    return 0


def as_expected(name: str, vm: dict[str, Any]) -> bool:
    """Whether the VM came out as meant: resident, seen, and drifting or not."""
    drifts = [node["drift"] for node in vm["guest_nodes"] if node["drift"] is not None]
    if len(drifts) != len(vm["guest_nodes"]) or not drifts:
        return False
    whole = all(
        drift["resident"] == node["memory"] and not drift["unknown"]
        for node, drift in zip(vm["guest_nodes"], drifts, strict=True)
    )
    return whole and bool(vm["drifting"]) == (name == DRIFTING)


def fail(directory: Path, why: str) -> int:
    """Say why, with the end of the daemon's log; gives the exit code."""
    log = (directory / "daemon.log").read_text(errors="replace").splitlines()
    print("\n".join(log[-20:]), file=sys.stderr)
    say(why)
    return 1


def say(text: str) -> None:
    """A line about the demonstration, apart from what gmemd prints."""
    print(f"try: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    try:
        sys.exit(main(sys.argv[1:]))
    except GmemdError as error:
        hint = f"\nhint: {error.hint}" if error.hint else ""
        print(f"try: {error.message}{hint}", file=sys.stderr)
        sys.exit(int(error.exit_code))
