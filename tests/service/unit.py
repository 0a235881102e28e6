"""gmemd as an operator installs it: the wheel, the shipped units, and what systemd says of them."""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from gmemd.client.blocking import NoDaemonError, call
from gmemd.client.errors import CallError

CHECKOUT = Path(__file__).parents[2]
SOCKET = Path("/run/gmemd/io.gmemd")
SPECS = Path("/etc/gmemd/vms.d")
RUNTIME_SPECS = Path("/run/gmemd/vms.d")
DROP_INS = Path("/run/systemd/system/gmemd.service.d")
PATIENCE_SECONDS = 240
SMALL_NODE = 3

SPEC = """\
version: 1
vm: {vm}
source: create
backend: guest_memfd
guest_nodes:
  - {{id: 0, vcpus: 0, memory: 16MiB, host_nodes: 0, policy: bind}}
  - {{id: 1, vcpus: 1, memory: {memory}, host_nodes: {host_node}, policy: {policy}}}
"""


def run(*command: str, told: str = "") -> subprocess.CompletedProcess[str]:
    """A command as an operator has it: away from the checkout. ``told`` is its input."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["SYSTEMD_BUS_TIMEOUT"] = f"{PATIENCE_SECONDS}s"
    return subprocess.run(
        command, env=environment, cwd="/", input=told, text=True, capture_output=True, check=False
    )


def must(*command: str) -> str:
    """The output of a command that has to succeed."""
    done = run(*command)
    assert done.returncode == 0, (
        f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
    )
    return done.stdout


@cache
def install() -> None:
    """Install the wheel and what belongs beside it, once."""
    wheels = sorted(CHECKOUT.glob("dist/gmemd-*.whl"), key=lambda path: path.stat().st_mtime)
    assert wheels, "there is no wheel in dist/, which tests/run.sh makes"
    pip = ("python3", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps")
    must(*pip, "--break-system-packages", "--root-user-action=ignore", str(wheels[-1]))
    for pattern, target in (
        ("*.service", "/usr/lib/systemd/system"),
        ("*.slice", "/usr/lib/systemd/system"),
        ("*.socket", "/usr/lib/systemd/system"),
        ("sysusers.d/*.conf", "/usr/lib/sysusers.d"),
        ("tmpfiles.d/*.conf", "/usr/lib/tmpfiles.d"),
    ):
        for path in CHECKOUT.glob(f"systemd/{pattern}"):
            shutil.copy(path, target)
    must("systemd-sysusers")
    must("systemd-tmpfiles", "--create", "gmemd.conf")
    shutil.copy(CHECKOUT / "config/gmemd.yaml", "/etc/gmemd/gmemd.yaml")
    must("systemctl", "daemon-reload")


def write_spec(
    vm: str, *, memory: str = "16MiB", host_node: int = 1, policy: str = "bind", at: Path = SPECS
) -> Path:
    """Write a VM's spec: guest node 0 small on host node 0, guest node 1 as said."""
    path = at / f"{vm}.yaml"
    path.write_text(SPEC.format(vm=vm, memory=memory, host_node=host_node, policy=policy))
    return path


def write_spilling_spec(vm: str, spill_bytes: int) -> None:
    """Write the spec of a VM that prefers a host node smaller than it by that much."""
    size = total_bytes(SMALL_NODE) + spill_bytes
    write_spec(vm, memory=f"{size >> 20}MiB", host_node=SMALL_NODE, policy="preferred")


def clear_specs() -> None:
    """Leave no VM specs anywhere."""
    for directory in (SPECS, RUNTIME_SPECS):
        for path in directory.glob("*.yaml"):
            path.unlink()


def start() -> None:
    """Start the unit; systemctl returns when it is ready."""
    done = run("systemctl", "start", "gmemd.service")
    assert done.returncode == 0, f"{done.stderr}\n{journal()}"


def stop() -> None:
    """Stop the unit, and give its VMs' memory back; systemctl returns when it is gone."""
    must("systemctl", "stop", "gmemd.service")
    run("systemctl", "reset-failed", "gmemd.service")
    must("systemctl", "clean", "--what=fdstore", "gmemd.service")


def unit(name: str) -> str:
    """A property of the unit."""
    return must("systemctl", "show", "--property", name, "--value", "gmemd.service").strip()


def journal() -> str:
    """What the service said, newest last."""
    return run("journalctl", "--unit=gmemd.service", "--output=short", "--no-pager").stdout


def vms() -> dict[str, dict[str, Any]]:
    """All VMs that the daemon lists, by name; none while nobody answers."""
    try:
        return {vm["vm"]: vm for vm in call(SOCKET, "List")["vms"]}
    except NoDaemonError:
        return {}


def wait_for(vm: str, *states: str) -> dict[str, Any]:
    """The VM, once it is in one of the states."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with suppress(NoDaemonError, CallError):
            found: dict[str, Any] = call(SOCKET, "Describe", vm=vm)["vm"]
            if found["state"] in states:
                return found
        time.sleep(0.5)
    raise AssertionError(f"{vm} is not {' or '.join(states)}: {vms().get(vm)}\n{journal()}")


def wait_until_gone(vm: str) -> None:
    """Return once nobody lists the VM any more."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if vm not in vms():
            return
        time.sleep(0.5)
    raise AssertionError(f"{vm} is still there: {vms()[vm]}\n{journal()}")


def get(address: str, path: str) -> str:
    """What an HTTP server answers to a GET, which has to be a success."""
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    assert response.status == 200, body
    return body


def free_bytes(node: int) -> int:
    """What a host node has free, by the kernel's account."""
    return _meminfo(node, "MemFree")


def unevictable_bytes(node: int) -> int:
    """What a host node has of guest_memfd, which unlike what is free is exact at once."""
    return _meminfo(node, "Unevictable")


def total_bytes(node: int) -> int:
    """What a host node has in all."""
    return _meminfo(node, "MemTotal")


def _meminfo(node: int, key: str) -> int:
    text = Path(f"/sys/devices/system/node/node{node}/meminfo").read_text()
    line = next(line for line in text.splitlines() if f" {key}:" in line)
    return int(line.split()[3]) * 1024
