"""A holder and what its cpuset leaves out."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import replace

from gmemd.daemon.holding import Holder, cpuset_warnings
from gmemd.host.vms.holders import ProcessFacts, read_facts
from tests.unit.daemon.vms import host, region_plan


def test_an_exit_is_told_once_and_the_pid_is_nobodys() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    async def hold() -> list[bool]:
        holder = Holder(os.pidfd_open(process.pid), process.pid)
        told: list[bool] = []
        gone = asyncio.Event()

        def exited() -> None:
            told.append(holder.alive)
            gone.set()

        holder.watch(exited)
        assert holder.is_process(process.pid)
        assert not holder.is_process(os.getpid())
        process.kill()
        process.wait()
        assert not holder.is_process(process.pid), "before the loop was told"
        await asyncio.wait_for(gone.wait(), 60)
        await asyncio.sleep(0)
        holder.close()
        holder.close()
        return told

    assert asyncio.run(hold()) == [False]


def test_who_opened_it_is_known_while_alive() -> None:
    own = os.pidfd_open(os.getpid())
    holder = Holder(os.pidfd_open(1), 1, opener=os.getpid(), opener_pidfd=own)
    assert holder.was_opened_by(os.getpid())
    assert not holder.was_opened_by(1)
    holder.close()
    assert not holder.was_opened_by(os.getpid())


def test_a_cpuset_that_leaves_out_a_node_is_told() -> None:
    plan = region_plan(nodes=0)
    assert cpuset_warnings(plan, ProcessFacts(mems=frozenset({0, 1})), host()) == []
    assert cpuset_warnings(plan, ProcessFacts(), host()) == [], "it can't be seen"
    (warning,) = cpuset_warnings(plan, ProcessFacts(mems=frozenset({1})), host())
    assert "cpuset.mems is 1" in warning
    assert cpuset_warnings(replace(plan, host_nodes=frozenset({7})), ProcessFacts(), host()) == []


def test_facts_of_this_process_and_of_none() -> None:
    assert read_facts(os.getpid()).program
    assert read_facts(1 << 22) == ProcessFacts()
