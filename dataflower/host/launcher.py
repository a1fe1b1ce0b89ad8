"""Processes: fork servers, the containers forked from them, and how each of them ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from dataflower import wire
from dataflower.channel.board import Board
from dataflower.channel.link import Link
from dataflower.channel.segment import Spill
from dataflower.clock import Clock
from dataflower.core.commands import StartContainer
from dataflower.host import logs
from dataflower.host.groups import Groups, Limits, Reservation
from dataflower.host.order import Order, fork_order
from dataflower.host.orphans import Orphans
from dataflower.host.processes import adopt_orphans, describe_exit, disown_orphans, kill_process, open_process, reap
from dataflower.host.settings import DefaultIsolation, HostConfig
from dataflower.host.spilling import own_folder
from dataflower.host.store import Store
from dataflower.host.zygote import Kind, Sandbox, Zygote
from dataflower.spec.workflow import Isolation, Resources

_log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 5.0


@dataclass(slots=True)
class Process:
    """A container as a process. `doom`: why the host kills it, empty if it doesn't."""

    number: int
    zygote: Zygote | None = None
    pid: int = 0
    pidfd: int = -1
    doom: str = ""
    timer: asyncio.TimerHandle | None = None
    board: Board | None = None
    lifeline: tuple[int, ...] = ()
    """The end to write to of a pipe of its own, at the end of which it ends; none: it hangs on one with others."""


@dataclass(slots=True)
class Nursery:
    """The zygote of one kind: there is one, or one is due after a pause."""

    zygote: Zygote | None = None
    waiting: list[Order] = field(default_factory=list)
    backoff_s: float = 0.0
    timer: asyncio.TimerHandle | None = None
    kept: bool = True
    """Whether it stays when it has no containers."""


class LauncherStatistics(msgspec.Struct, frozen=True):
    """`zygotes_lost`: fork servers that ended unasked, since the start."""

    zygotes: int
    containers: int
    zygotes_lost: int


class Launcher:
    """Starts containers and tells when they ended. Every started container is reported exactly once."""

    def __init__(
        self,
        clock: Clock,
        config: HostConfig,
        on_exit: Callable[[int, str, frozenset[int]], None],
        spill: Spill | None = None,
    ) -> None:
        """`on_exit(container, reason, begun)` is called from the loop, never from within `start`, `stop` or `kill`.

        `begun`: the task that each of its threads had begun last. `spill`: where containers may go on when their memory
        is full.
        """
        self.on_zygote: Callable[[tuple[str, ...], float, int], None] | None = None
        """Called with modules, seconds and process id when a zygote has imported its libraries."""
        self.on_zygote_end: Callable[[tuple[str, ...]], None] | None = None
        """Called with its modules when a zygote that had imported them is gone; from the loop, as `on_exit`."""
        self._spill_folder = own_folder(spill)
        self._spill = None if self._spill_folder is None else self._spill_folder.spill
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._config = config
        self._on_exit = on_exit
        self._nurseries: dict[Kind, Nursery] = {}
        self._processes: dict[int, Process] = {}
        self._marker = f"DATAFLOWER_HOST={os.getpid()}-{uuid.uuid4().hex}"
        self._lifeline = os.pipe()
        """Read end, write end. Nothing is ever written: it ends with this process, and the containers with it."""
        self._store = self._new_store()
        self._sandbox = Sandbox(
            readable=(*config.code_path, *config.readable_paths),
            writable=config.writable_paths,
            hidden=tuple(str(place.absolute()) for place in (config.state_dir, config.logs) if place is not None),
            environment=config.pass_environment,
            spill="" if self._spill is None else self._spill.directory,
        )
        self._groups = Groups() if config.control_groups else None
        self._scratch = os.path.join(tempfile.gettempdir(), f"dataflower-{uuid.uuid4().hex}")
        """Where containers without a /tmp of their own make a directory each."""
        self._warned = False
        self._zygotes: set[Zygote] = set()
        self._lost = 0
        self._closing = False
        self._changed = asyncio.Event()
        self._orphans = Orphans(self._loop, self._marker, self._changed.set)
        adopt_orphans()

    # --- containers ------------------------------------------------------------------------------------------

    def start(self, command: StartContainer, owner: int = 0) -> tuple[Link, Link, Link]:
        """Order a container; returns the host's ends of its inbox, task and control sockets, which the caller owns.

        `owner`: the number under which it makes arenas, if not its own.

        Raises OSError when the machine has no descriptors or processes left; nothing was started then.
        """
        workflow = command.key.rpartition("@")[0]
        isolated = self._is_isolated(command.stage.isolation)
        kind = self._kind(Kind(command.stage.preload, isolated))
        nursery = self._nurseries.setdefault(kind, Nursery())
        with contextlib.ExitStack() as undo:
            inbox, inbox_end = Link.pair()
            undo.callback(inbox.close)
            undo.callback(inbox_end.close)
            task, task_end = Link.pair()
            undo.callback(task.close)
            undo.callback(task_end.close)
            control, control_end = Link.pair()
            undo.callback(control.close)
            undo.callback(control_end.close)
            board = Board(command.stage.scaling.concurrency)
            undo.callback(board.close)
            lifeline = os.pipe() if nursery.zygote is None or nursery.zygote.needs_lifelines else ()
            for end in lifeline:
                undo.callback(os.close, end)
            log = self._open_log(workflow, command.stage.name)
            undo.pop_all()
        fork = msgspec.structs.replace(
            fork_order(command, workflow, self._config, self._spill),
            isolated=isolated,
            demanded=isolated and Isolation.SANDBOX in (command.stage.isolation, self._default_isolation),
            scratch=os.path.join(self._scratch, str(command.container)),
            owner=owner,
        )
        if isolated:
            fork = msgspec.structs.replace(fork, groups=self._groups_for(command, fork, nursery.zygote))
        elif nursery.zygote is not None:
            nursery.zygote.spare = None
        order = Order(fork, (inbox_end, task_end, control_end), log, board, lifeline[:1])
        self._processes[command.container] = Process(command.container, board=board, lifeline=lifeline[1:])
        nursery.waiting.append(order)
        if nursery.zygote is not None:
            self._send_waiting(nursery)
        elif nursery.timer is None:
            self._start_zygote(kind)
        return inbox, task, control

    def preload(self, modules: tuple[str, ...], isolation: Isolation | None) -> None:
        """Have a zygote with these libraries, ready or getting ready."""
        kind = self._kind(Kind(modules, self._is_isolated(isolation)))
        nursery = self._nurseries.setdefault(kind, Nursery())
        nursery.kept = True
        if nursery.zygote is None and nursery.timer is None:
            self._start_zygote(kind)

    def unload(self, modules: tuple[str, ...], isolation: Isolation | None) -> None:
        """The zygote with just these libraries need not be kept: it ends with the last of its containers."""
        kind = Kind(modules, self._is_isolated(isolation))
        if kind in self._nurseries:
            self._nurseries[kind].kept = False
            self._retire_if_unused(kind)

    def _retire_if_unused(self, kind: Kind) -> None:
        nursery = self._nurseries[kind]
        zygote = nursery.zygote
        if nursery.kept or nursery.waiting or zygote is None or zygote.pending or zygote.children:
            return
        nursery.zygote = None
        zygote.retired = True
        zygote.kill()  # it has nothing to put in order

    def _kind(self, wanted: Kind) -> Kind:
        """The smallest zygote that will do and that is kept, or the one to be made."""
        able = [known for known, nursery in self._nurseries.items() if nursery.kept and known.serves(wanted)]
        return min(able, key=lambda kind: len(kind.preload), default=wanted)

    @property
    def _default_isolation(self) -> Isolation | None:
        default = self._config.isolation
        return None if default is DefaultIsolation.AUTO else Isolation(default.value)

    def _is_isolated(self, asked: Isolation | None) -> bool:
        return (asked or self._default_isolation) is not Isolation.PROCESS

    def ready(self, container: int) -> None:
        """It is ready for tasks: time to get ready for the next."""
        process = self._processes.get(container)
        if process is not None and process.zygote is not None:
            self._restock(process.zygote)

    def _restock(self, zygote: Zygote) -> None:
        """Have a process ready for the next container of this zygote."""
        if zygote.spare is not None or zygote.retired or zygote not in self._zygotes or self._closing:
            return
        if self._config.spare_containers and zygote.is_ready:
            grouped = self._groups is not None and zygote.kind.isolated
            zygote.prepare(self._groups.reserve() if self._groups is not None and grouped else Reservation())

    def _groups_for(self, command: StartContainer, fork: wire.Fork, zygote: Zygote | None) -> tuple[str, ...]:
        """Files of the container's groups: those that the process is in already which will be it, or new ones."""
        reserved = None
        if zygote is not None and not (fork.network or fork.gpu):
            reserved, zygote.spare = zygote.spare, None
        if self._groups is None:
            return ()
        resources = command.stage.resources
        memory = resources.memory_bytes
        limits = Limits(
            cpu=None if resources.cpu == Resources().cpu else resources.cpu,
            # What it writes for others to read is charged to it as well.
            memory_bytes=memory + self._config.container_arena_bytes if memory else 0,
        )
        if reserved is not None:
            return self._groups.adopt(command.container, limits, reserved)
        return self._groups.make(command.container, limits)

    def stop(self, container: int) -> None:
        """Its sockets were closed: give it a while to leave, then kill it."""
        process = self._processes.get(container)
        if process is not None and process.timer is None:
            process.timer = self._loop.call_later(
                self._config.stop_grace_s, self.kill, container, "it did not leave when told to"
            )

    def kill(self, container: int, reason: str) -> None:
        """SIGKILL, at once or as soon as it has been forked. No-op if it has ended."""
        process = self._processes.get(container)
        if process is None:
            return
        process.doom = process.doom or reason
        if process.pidfd >= 0:
            kill_process(process.pidfd)
        elif process.zygote is None:
            self._loop.call_soon(self._abandon, container)

    def _abandon(self, container: int) -> None:
        """A container that its zygote has never been asked for need not be started at all."""
        for nursery in self._nurseries.values():
            for order in nursery.waiting:
                if order.fork.container == container:
                    nursery.waiting.remove(order)
                    order.close()
                    self._ended(container, None, "was not started")
                    return

    def _open_log(self, workflow: str, stage: str) -> int:
        root = self._config.logs
        return os.dup(2) if root is None else logs.open_log(logs.stage_log(root, workflow, stage))

    # --- zygotes ---------------------------------------------------------------------------------------------

    def _start_zygote(self, kind: Kind) -> None:
        nursery = self._nurseries[kind]
        nursery.timer = None
        if self._closing or nursery.zygote is not None:
            return
        try:
            nursery.zygote = self._new_zygote(kind)
        except OSError as error:  # out of descriptors, memory or processes: later, perhaps
            _log.error("a zygote could not be started: %s", error)
            self._restart_later(kind, nursery)
            return
        self._zygotes.add(nursery.zygote)
        self._send_waiting(nursery)

    def _new_zygote(self, kind: Kind) -> Zygote:
        root = self._config.logs
        log = None if root is None else logs.open_log(logs.zygote_log(root, str(kind)))
        try:
            return Zygote(
                self._loop,
                kind,
                sandbox=self._sandbox,
                marker=self._marker,
                lifeline=self._lifeline[0],
                log=log,
                on_message=self._on_zygote_message,
                on_exit=self._on_zygote_exit,
            )
        finally:
            if log is not None:
                os.close(log)

    def _new_store(self) -> Store:
        root = self._config.logs
        return Store(self._loop, self._config.models, None if root is None else logs.zygote_log(root, "store"))

    @property
    def store(self) -> Store:
        """The store of weights."""
        return self._store

    def _send_waiting(self, nursery: Nursery) -> None:
        zygote = nursery.zygote
        assert zygote is not None
        for order in nursery.waiting:
            self._processes[order.fork.container].zygote = zygote
            zygote.fork(order.fork, order.descriptors)
            order.close()
        nursery.waiting.clear()

    def _on_zygote_message(self, zygote: Zygote, message: wire.FromZygote) -> None:
        match message:
            case wire.Forked(container, pid):
                self._on_forked(zygote, container, pid)
            case wire.Exited(0):
                zygote.spare_pid = 0
            case wire.Exited(container, status, reason):
                zygote.pending.discard(container)
                zygote.children.discard(container)
                self._ended(container, status, f"could not be started: {reason}" if reason else "")
            case wire.Kept(pid):
                zygote.keeper = pid
            case wire.Prepared(pid):
                zygote.spare_pid = pid
            case wire.ZygoteReady():
                if message.version != wire.VERSION:
                    _log.error("a zygote speaks version %d of the wire, the host %d", message.version, wire.VERSION)
                    zygote.kill()
                    return
                zygote.is_ready = True
                zygote.walls = message.walls
                self._nurseries[zygote.kind].backoff_s = 0.0
                self._restock(zygote)
                _log.info("zygote %d is ready in %.2f s", message.pid, message.seconds)
                if self.on_zygote is not None:
                    self.on_zygote(zygote.kind.preload, message.seconds, zygote.pid)
                if zygote.kind.isolated and message.walls is not wire.Walls.ROOM:
                    self._warn(message)
                if message.missing:
                    _log.warning("a zygote could not preload %s", ", ".join(message.missing))

    def _warn(self, message: wire.ZygoteReady) -> None:
        """Containers are less apart than they should be: say it once."""
        if not self._warned:
            self._warned = True
            what = "plain processes" if message.walls is wire.Walls.NONE else "processes kept apart by Landlock"
            _log.warning(
                "sandboxes with namespaces are not possible here (%s); containers are %s. See `dataflower doctor`, or "
                "choose `isolation: process`",
                message.why_not,
                what,
            )

    def _on_forked(self, zygote: Zygote, container: int, pid: int) -> None:
        zygote.pending.discard(container)
        if zygote.spare_pid == pid:
            zygote.spare_pid = 0
        process = self._processes.get(container)
        pidfd = open_process(pid)
        if process is None or pidfd is None:
            if pidfd is not None:
                kill_process(pidfd)
                os.close(pidfd)
            return  # gone already: `Exited` is on its way
        zygote.children.add(container)
        process.pid, process.pidfd = pid, pidfd
        if process.doom:
            kill_process(pidfd)

    def _on_zygote_exit(self, zygote: Zygote, status: int) -> None:
        self._zygotes.discard(zygote)
        nursery = self._nurseries[zygote.kind]
        if nursery.zygote is zygote:
            nursery.zygote = None
        if not self._closing and not zygote.retired:
            self._lost += 1
            _log.error("a zygote (preloading %s) %s", zygote.kind, describe_exit(status))
        if zygote.spare is not None and self._groups is not None:
            self._groups.give_back(zygote.spare)
            zygote.spare = None
        if zygote.spare_pid:
            self._orphans.end(zygote.spare_pid)
        if zygote.keeper:  # it ends with the last of its rooms, and then by itself
            self._orphans.expect(zygote.keeper)
        for container in sorted(zygote.children):
            self._adopt(container)
        self._end_unknown()
        for container in sorted(zygote.pending):
            # Whether it was forked is unknown; if so it was among the unknown, and its sockets are closed with this.
            self._ended(container, None, f"was lost: its zygote {describe_exit(status)}")
        if nursery.waiting and nursery.zygote is None:
            self._restart_later(zygote.kind, nursery)
        if zygote.is_ready and self.on_zygote_end is not None and not self._closing:
            self.on_zygote_end(zygote.kind.preload)
        self._changed.set()

    def _restart_later(self, kind: Kind, nursery: Nursery) -> None:
        nursery.backoff_s = min(max(nursery.backoff_s * 2, FIRST_BACKOFF_S), LONGEST_BACKOFF_S)
        if nursery.timer is None:
            nursery.timer = self._loop.call_later(nursery.backoff_s, self._start_zygote, kind)

    def _adopt(self, container: int) -> None:
        """Its zygote is gone and the kernel has made the container this process's child: watch it here."""
        process = self._processes.get(container)
        if process is not None and process.pidfd >= 0:
            process.zygote = None
            self._loop.add_reader(process.pidfd, self._on_adopted_exit, container)

    def _on_adopted_exit(self, container: int) -> None:
        process = self._processes[container]
        self._loop.remove_reader(process.pidfd)
        self._ended(container, reap(process.pidfd))

    def _end_unknown(self) -> None:
        """End forks that a zygote did not live to report, and processes that functions started and did not end."""
        self._orphans.end_unknown(
            {process.pid for process in self._processes.values()} | {zygote.pid for zygote in self._zygotes}
        )

    # --- ends ------------------------------------------------------------------------------------------------

    def _ended(self, container: int, status: int | None, reason: str = "") -> None:
        process = self._processes.pop(container, None)
        if process is None:
            return
        if process.timer is not None:
            process.timer.cancel()
        if process.zygote is not None:
            process.zygote.pending.discard(container)
            process.zygote.children.discard(container)
            if process.zygote is self._nurseries[process.zygote.kind].zygote:
                self._retire_if_unused(process.zygote.kind)
            self._restock(process.zygote)
        for descriptor in process.lifeline:
            os.close(descriptor)
        if process.pidfd >= 0:
            os.close(process.pidfd)
            self._orphans.clear_group(process.pid)
        if self._groups is not None:
            self._groups.remove(container)
        shutil.rmtree(os.path.join(self._scratch, str(container)), ignore_errors=True)
        if self._spill is not None:
            with contextlib.suppress(OSError):
                os.rmdir(os.path.join(self._spill.directory, str(container)))
        begun = process.board.begun() if process.board is not None else frozenset()
        reason = f"was killed: {process.doom}" if process.doom else reason or describe_exit(status)
        self._on_exit(container, reason, begun)
        if process.board is not None:
            process.board.close()
        self._changed.set()

    async def _until(self, done: Callable[[], bool], timeout_s: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not done():
                    self._changed.clear()
                    await self._changed.wait()

    def board(self, container: int) -> Board | None:
        """The board of a container that was started and hasn't ended."""
        process = self._processes.get(container)
        return None if process is None else process.board

    def pids(self) -> dict[int, int]:
        """Process ids of the running containers, by number."""
        return {number: process.pid for number, process in self._processes.items() if process.pid}

    def zygote_pids(self) -> tuple[int, ...]:
        """Process ids of the fork servers."""
        return tuple(sorted(zygote.pid for zygote in self._zygotes))

    def statistics(self) -> LauncherStatistics:
        """Counts now."""
        return LauncherStatistics(len(self._zygotes), len(self._processes), self._lost)

    async def close(self) -> None:
        """End every process and return when all of them are gone. The containers' sockets should be closed before."""
        if self._closing:
            return
        self._closing = True
        for nursery in self._nurseries.values():
            if nursery.timer is not None:
                nursery.timer.cancel()
            for order in nursery.waiting:
                order.close()
                self._ended(order.fork.container, None, "was not started: the host stops")
            nursery.waiting.clear()
        for zygote in list(self._zygotes):
            if not zygote.is_ready:  # it imports, perhaps for seconds, and would hear of it only afterwards
                zygote.kill()
        await self._until(lambda: not self._processes, self._config.stop_grace_s)
        for number in list(self._processes):
            self.kill(number, "the host stops")
        for zygote in list(self._zygotes):  # it has nothing to put in order
            zygote.kill()
        await self._until(lambda: not (self._zygotes or self._processes), None)
        self._end_unknown()
        while self._orphans:
            await self._until(lambda: not self._orphans, None)
            self._end_unknown()  # what those had started is this process's now
        self._store.close()
        for descriptor in self._lifeline:
            os.close(descriptor)
        if self._groups is not None:
            self._groups.close()
        with contextlib.suppress(OSError):
            os.rmdir(self._scratch)
        if self._spill_folder is not None:
            self._spill_folder.close()
        disown_orphans()
