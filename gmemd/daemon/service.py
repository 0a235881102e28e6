"""The daemon as a whole: configuration, signals, API, metrics, systemd, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING

from gmemd.daemon.adopting import Adopting
from gmemd.daemon.auditing import Auditor
from gmemd.daemon.desired import ReloadError, read_desired
from gmemd.daemon.desk import Desk
from gmemd.daemon.fleet import Fleet
from gmemd.daemon.handing import Handing
from gmemd.daemon.lifecycle import Lifecycle
from gmemd.daemon.metrics import metrics_server
from gmemd.daemon.notify import Notifier, missing_extra, watchdog_seconds
from gmemd.daemon.observer import Observer
from gmemd.daemon.passed import Passed, passed_fds, sort_passed
from gmemd.daemon.reconcile import LONGEST_PASS_SECONDS, Reconciler
from gmemd.daemon.reloading import config_notes, report, summary
from gmemd.daemon.specs import PassedSpecs
from gmemd.daemon.steps import step
from gmemd.daemon.store.again import have_again
from gmemd.daemon.store.fdstore import FdStore, shortcomings
from gmemd.daemon.store.keeper import Keeper
from gmemd.daemon.store.recovery import read_boot_id
from gmemd.daemon.taking import Taking
from gmemd.daemon.varlink.activation import open_listener
from gmemd.daemon.varlink.api import protocol_factory
from gmemd.daemon.varlink.errors import ReloadFailed
from gmemd.daemon.varlink.server import Server
from gmemd.daemon.watched import wanted
from gmemd.daemon.work import Workers
from gmemd.export.instruments import Counters
from gmemd.plan.admission import Reserve
from gmemd.spec.config import DaemonConfig, load_config
from gmemd.spec.loading import KnownFiles
from gmemd.spec.problems import SpecError

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from gmemd.daemon.desired import Desired
    from gmemd.daemon.observing import FoundVm
    from gmemd.daemon.varlink.interface import ReloadResult
    from gmemd.daemon.varlink.listener import Listener
    from gmemd.daemon.varlink.peer import Peer
    from gmemd.export.http import MetricsServer
    from gmemd.export.snapshot import Snapshot
    from gmemd.spec.model import VmSpec
    from gmemd.spec.problems import Problem

log = logging.getLogger(__name__)

STOP_EXTENSION_SECONDS = 30.0


def run(config_path: Path | None) -> int:
    """Run the daemon until it is told to stop. Raises GmemdError where it can't start."""
    config = load_config(config_path)
    limit_process()
    if note := missing_extra():
        log.warning("%s", note)
    passed = sort_passed(passed_fds())
    with open_listener(config, passed.api) as listener:
        asyncio.run(Daemon(config_path, config, passed).serve(listener))
    return 0


def limit_process() -> None:
    """Write no core dumps, as they would hold guests' memory; open as many files as allowed."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Daemon:
    """All of the daemon's parts, and what signals reach."""

    def __init__(
        self, config_path: Path | None, config: DaemonConfig, passed: Passed | None = None
    ) -> None:
        self._config_path = config_path
        self._config = config
        self._notifier = Notifier()
        self._counters = Counters()
        self._reloading = asyncio.Lock()
        self._stop = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()
        self._workers = Workers()
        self._files = KnownFiles()
        self._fleet = Fleet(
            self._workers,
            self._counters,
            reserve=_reserve(config),
            audit_interval_seconds=config.audit.interval_seconds,
        )
        self._passed = passed or Passed()
        self._boot_id = read_boot_id()
        store = FdStore()
        self._fleet.keeper = self._keeper = Keeper(
            self._fleet, config.state_directory, store, self._boot_id
        )
        self._keeping: asyncio.Task[None] | None = None
        for note in shortcomings(store):
            log.warning("%s", note)
        self._specs = PassedSpecs(self._fleet, config.state_directory, config.inline_spec_users)
        lifecycle = Lifecycle(self._fleet, self._specs.forget)
        self._auditor = Auditor(self._fleet, lifecycle, config.audit)
        observer = Observer(
            self._workers,
            self._counters,
            host=self._fleet.known_host,
            changed=self._fleet.news,
            held=self._fleet.holder_pids,
            adoptable=self._adoptable,
        )
        watchdog = watchdog_seconds()
        self._reconciler = Reconciler(
            self._fleet,
            lifecycle,
            observer,
            is_inline=self._specs.files.has,
            after_pass=self._after_pass,
            longest_pause_seconds=watchdog / 2 if watchdog else LONGEST_PASS_SECONDS,
        )
        self._specs.reconciler = self._reconciler
        taking = Taking(self._fleet, lifecycle, self._reconciler)
        self._adopting = Adopting(self._fleet, taking)
        self._desk = Desk(
            self._fleet,
            self._reconciler,
            Handing(self._fleet, lifecycle, self._reconciler),
            taking=taking,
            adopting=self._adopting,
            specs=self._specs,
            reload=self.reload,
        )

    @property
    def snapshot(self) -> Snapshot:
        """The latest published snapshot."""
        return self._reconciler.snapshot

    async def serve(self, listener: Listener) -> None:
        """Serve until a signal says stop, then give everything back."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_by_signal)
        with metrics_server(
            self._config, self._passed.metrics, lambda: self.snapshot, self._counters
        ) as metrics:
            server = Server(
                listener.socket.dup(),
                protocol_factory(self._desk, self._counters.add_api_error),
                self._may_send_fds,
            )
            try:
                await self._start(server, metrics, listener.path)
                await self._until_stopped()
            finally:
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.remove_signal_handler(number)
                loop.remove_signal_handler(signal.SIGHUP)
                signal.signal(signal.SIGHUP, signal.SIG_IGN)
                server.close()
                await self._end(server)

    async def reload(self) -> ReloadResult:
        """Read config and specs again; raises ReloadFailed with everything as it was."""
        async with self._reloading:
            self._notifier.reloading()
            try:
                async with self._specs.changing:
                    result = await self._read_again()
            except (ReloadError, SpecError) as error:
                self._reconciler.reload_successful = False
                self._reconciler.reload_message = error.message
                self._reconciler.publish()
                log.error("reload failed: %s", error.in_one_line)  # noqa: TRY400
                raise ReloadFailed(message=error.message, hint=error.hint) from error
            finally:
                self._notifier.ready()
        log.info("reloaded: %s", summary(result))
        return result

    async def _may_send_fds(self, peer: Peer) -> bool:
        """Whether there is any call that a peer may pass file descriptors with."""
        if await self._desk.usable(peer) or await self._desk.may_pass_specs(peer):
            return True
        held = [vm.holder for vm in self._fleet.vms.values() if vm.holder is not None]
        pid = peer.living_pid()
        return any(holder.is_process(pid) for holder in held)

    def _adoptable(self, spec: VmSpec, found: FoundVm | None) -> None:
        """Adopt a VMM that was found, in the background; of one that is gone forget what failed."""
        if found is None:
            self._adopting.lost(spec)
        else:
            self._in_background(self._adopting.take_on(spec, found))

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _start(self, server: Server, metrics: MetricsServer, path: Path) -> None:
        """Take on the specs, serve, and say so."""
        before = await self._recover()
        desired = await self._workers.read(
            read_desired, self._directories(self._config), before, self._files, starting=True
        )
        self._log_problems(desired.problems)
        self._want(desired)
        await server.start_serving()
        log.info(
            "serving %s, metrics on %s, %d VMs",
            path,
            ", ".join(metrics.addresses) or "no address",
            len(desired.names),
        )
        self._notifier.ready()

    async def _recover(self) -> Desired:
        """Have again what an earlier daemon left; gives the specs that were in force."""
        host = await self._fleet.read_host()
        stored, self._passed.stored = self._passed.stored, []
        recovered = await self._workers.recover(
            stored, self._config.state_directory, host, self._boot_id
        )
        self._keeper.take_on(recovered)
        before = have_again(recovered, self._fleet, self._reconciler.possession)
        self._keeping = asyncio.create_task(self._keeper.run(), name="keep")
        self._in_background(self._give_up(recovered.leaving))
        step("start.recovered")
        return before

    async def _give_up(self, fds: list[int]) -> None:
        """Close what is nobody's, once the store has it no more."""
        await self._keeper.secure()
        await self._workers.close_fds(fds)

    async def _until_stopped(self) -> None:
        """Reconcile and observe until a signal says stop, or the loop fails."""
        loop_task = asyncio.create_task(self._reconciler.run(), name="reconcile")
        observing = asyncio.create_task(self._reconciler.observer.run(), name="observe")
        adopting = asyncio.create_task(self._adopting.run(), name="adopt")
        auditing = asyncio.create_task(self._auditor.run(), name="audit")
        stop_task = asyncio.create_task(self._stop.wait(), name="stop")
        vital = {task for task in (loop_task, self._keeping) if task is not None}
        await asyncio.wait({*vital, stop_task}, return_when=asyncio.FIRST_COMPLETED)
        self._reconciler.observer.stop()
        for task in (stop_task, observing, adopting, auditing):
            task.cancel()
        for task in vital:
            if task.done():
                task.result()
        loop_task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loop_task

    async def _end(self, server: Server) -> None:
        """Close connections, stop the work, give back what nothing keeps."""
        log.info("stopping")
        self._notifier.stopping()
        self._notifier.extend(STOP_EXTENSION_SECONDS)
        extending = asyncio.create_task(self._extend())
        server.abort_clients()
        await self._reconciler.stop()
        extending.cancel()
        if self._keeping is not None:
            self._keeping.cancel()
        await self._keeper.close()
        await asyncio.get_running_loop().run_in_executor(None, self._workers.close)
        log.info("stopped")

    async def _extend(self) -> None:
        """Ask systemd for patience for as long as this runs."""
        while True:
            await asyncio.sleep(STOP_EXTENSION_SECONDS / 2)
            self._notifier.extend(STOP_EXTENSION_SECONDS)

    def _reload_by_signal(self) -> None:
        self._in_background(self._reload_quietly())

    async def _reload_quietly(self) -> None:
        """Reload for a caller who reads the log alone, where a failure was written already."""
        with contextlib.suppress(ReloadFailed):
            await self.reload()

    async def _read_again(self) -> ReloadResult:
        config = await self._workers.read(load_config, self._config_path)
        before = self._fleet.desired
        desired = await self._workers.read(
            read_desired, self._directories(config), before, self._files
        )
        self._log_problems(desired.problems)
        holding = {
            name: vm.spec
            for name, vm in self._fleet.vms.items()
            if vm.regions and vm.spec is not None
        }
        result = report(before, desired, holding, config_notes(self._config, config))
        self._config = config
        self._fleet.reserve = _reserve(config)
        self._auditor.configure(config.audit)
        self._specs.users = config.inline_spec_users
        self._want(desired)
        return result

    def _directories(self, config: DaemonConfig) -> tuple[Path, ...]:
        """Where specs are: the operator's, and last those that came with calls."""
        inline = self._specs.files.directory
        return (*config.vms_directories, *((inline,) if inline.exists() else ()))

    def _want(self, desired: Desired) -> None:
        """Take on specs and the configuration, and publish."""
        self._reconciler.want(desired)
        self._reconciler.observer.want(wanted(self._config, desired))
        self._note_reload(desired)
        self._reconciler.look_at_all()

    def _note_reload(self, desired: Desired) -> None:
        """Have the snapshot tell which files were broken, if any."""
        reconciler = self._reconciler
        broken = sorted({problem.file for problem in desired.problems})
        reconciler.reload_successful = not broken
        reconciler.reload_message = f"broken: {', '.join(broken)}" if broken else ""
        if not broken:
            reconciler.reload_success_timestamp = time.time()

    def _log_problems(self, problems: tuple[Problem, ...]) -> None:
        for problem in problems:
            log.error("%s", problem)

    def _after_pass(self) -> None:
        """Tell systemd how things stand, and that the loop goes round."""
        self._notifier.alive()
        self._notifier.status(status_line(self.snapshot))


def status_line(snapshot: Snapshot) -> str:
    """How things stand, in one line: ``3 VMs: 2 ready, 1 failed``."""
    states = Counter(str(vm.state) for vm in snapshot.vms)
    words = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    noun = "VM" if len(snapshot.vms) == 1 else "VMs"
    line = f"{len(snapshot.vms)} {noun}{f': {words}' if words else ''}"
    return line if snapshot.reload_successful else f"{line}; last reload not successful"


def _reserve(config: DaemonConfig) -> Reserve:
    return Reserve(config.admission.reserve_ratio, config.admission.reserve_bytes)
