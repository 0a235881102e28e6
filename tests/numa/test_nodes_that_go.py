"""A node whose memory goes and comes: its VMs' failure, and nobody else's.

Last of its machine's tests, by its name: what the kernel keeps on the node while its memory is the
kernel's can't be moved away again, so that the others' tests find no movable node any more.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gmemd.client.blocking import call
from tests.kernel.daemon.faults import Left
from tests.kernel.daemon.vmms import vmm
from tests.numa.handing import audited, bound, write_spec
from tests.numa.provisioning import bytes_by_node
from tests.numa.test_faults import MADE, MEMFD, MIB, daemon, in_use  # noqa: F401  a fixture

if TYPE_CHECKING:
    from tests.kernel.daemon.conftest import Daemon

pytestmark = pytest.mark.lab(variant="movable")

FAR = 4
BLOCKS = Path(f"/sys/devices/system/node/node{FAR}")


def bring(state: str) -> set[str]:
    """Bring the node's memory online (as what), or offline; its blocks' states afterwards."""
    for block in known_blocks:
        if (block / "state").read_text().strip() != state.partition("_")[0]:
            with suppress(OSError):  # in use by what can't be moved
                (block / "state").write_text(state)
    return {(block / "state").read_text().strip() for block in known_blocks}


known_blocks: list[Path] = []


def test_an_empty_node_goes_and_comes(daemon: Daemon) -> None:  # noqa: F811  the fixture
    known_blocks[:] = [path.resolve() for path in BLOCKS.glob("memory[0-9]*")]
    write_spec(daemon, "movable", bound(64, FAR, MEMFD), **MADE)
    write_spec(daemon, "pinned", bound(64, FAR), **MADE)
    with in_use(daemon) as guest:
        daemon.wait_for("movable", "ready")
        assert "movable memory" in daemon.wait_for("pinned", "failed")["message"]
        guest.do("acquire", "movable")
        guest.do("fill", "movable", 7)
        # The kernel moves what it may; the bytes stay, and where they are is told.
        assert bring("offline") == {"offline"}
        daemon.until(lambda: daemon.describe("movable")["state"] == "degraded")
        audited(daemon, "movable")
        told = daemon.describe("movable")
        assert guest.do("look", "movable") == [7]
        assert told["guest_nodes"][0]["drift"]["cause"] == "node offline"
        assert told["guest_nodes"][0]["drift"]["misplaced"] == 64 * MIB
        guest.do("call", "Release", vm="movable")
        (daemon.vms / "movable.yaml").unlink()
        call(daemon.socket, "Reload")
        failed = daemon.wait_for("pinned", "failed")
        assert f"host node {FAR} " in failed["message"], failed
        left = Left(daemon)
        # As memory of the kernel's it can have guest_memfd, which no hand takes away any more.
        assert bring("online_kernel") == {"online"}
        daemon.wait_for("pinned", "ready")
        with vmm(daemon) as other:
            other.do("acquire", "pinned")
            other.do("fill", "pinned", 9)
            assert "online" in bring("offline")
            assert bytes_by_node("Unevictable")[FAR] >= 64 * MIB
            assert audited(daemon, "pinned")["guest_nodes"][0]["drift"]["placed"] == 64 * MIB
            assert other.do("look", "pinned") == [9]
            bring("online_kernel")
        daemon.wait_for("pinned", "waiting")
        (daemon.vms / "pinned.yaml").unlink()
        call(daemon.socket, "Reload")
        daemon.until(lambda: daemon.names() == {"bystander"})
        left.check()
        assert bytes_by_node("Unevictable")[FAR] < MIB, "all of it was given back"
