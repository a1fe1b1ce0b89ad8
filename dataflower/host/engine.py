"""The heart of a host: everything that happens goes into the core, and what the core wants is done, in order.

The way of a message is short on purpose: the socket is readable, the message is decoded and checked, the core answers
with commands, each is carried out by one call. No task is created and nothing is awaited on it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol
from weakref import WeakValueDictionary

import msgspec

from dataflower import wire
from dataflower.channel.views import Views
from dataflower.checkpoint.protocol import Statistics
from dataflower.clock import Clock
from dataflower.core import commands
from dataflower.core.commands import Command, FinishInvocation, Tell
from dataflower.core.events import (
    ContainerDied,
    ContainerExited,
    ContainerSaid,
    ContainerSending,
    ContainerSized,
    Event,
    InvocationReleased,
    MemoryLost,
    Slot,
    Woke,
    ZygoteEnded,
    ZygoteStarted,
)
from dataflower.core.ledger import Ledger
from dataflower.errors import Closed, EndOfStream, PeerGone, WouldBlock
from dataflower.host.alarm import Alarm
from dataflower.host.api import ContainerStart, StartListener
from dataflower.host.boards import Boards
from dataflower.host.holder import Holder
from dataflower.host.input_arenas import InputArenas
from dataflower.host.launcher import Launcher, LauncherStatistics
from dataflower.host.lender import Lender
from dataflower.host.links import MOST_TOGETHER, Memory, Peer, ProtocolViolation
from dataflower.host.meeting import Credentials
from dataflower.host.peer_wire import Sending
from dataflower.host.process_memory import anonymous_bytes, private_bytes
from dataflower.host.promises import Promises
from dataflower.host.remote_peer import RemotePeer
from dataflower.host.remotes import Remotes
from dataflower.host.settings import HostConfig
from dataflower.host.spilling import spill_of
from dataflower.wire import ArenaMade, BatchDone, Hello, Knock, ReleaseSlots, RunTask, TaskDone, TaskFailed, Value

_log = logging.getLogger(__name__)


BURST = MOST_TOGETHER
"""Messages taken from one container before the others get their turn: what makes one message for the next stage."""
CROWD = 8
"""With more invocations of a workflow than this, its messages wait for the others of the same turn of the loop, to wake
nobody twice."""
LAST_WORDS = 10_000
"""Messages taken from a container after its death."""

_decode = wire.decode_from_container


class Core(Protocol):
    """What the engine needs of `core.host.HostCore`."""

    ledger: Ledger

    def handle(self, event: Event, now: float) -> list[Command]:
        """What to do about an event at CLOCK_MONOTONIC time `now`."""
        ...


class Receiver(Protocol):
    """Who is told about an invocation. Called from within the engine: must not block, and may only `feed`."""

    def on_emit(self, port: str, index: int, value: Value) -> None:
        """A result; its slots live until `OutputTaken` or `InvocationReleased` is fed."""
        ...

    def on_end_output(self, port: str, absent: bool) -> None:
        """An output is complete."""
        ...

    def on_take_input(self, port: str, items: int) -> None:
        """So many items may have been fed."""
        ...

    def on_finish(self, command: FinishInvocation) -> bool | None:
        """It is over. True if its outputs were let go of already, so that `on_expire` need not be called."""
        ...

    def on_expire(self) -> None:
        """Its outputs have waited for long: if nobody reads them, `InvocationReleased` is to be fed."""
        ...


class EngineStatistics(msgspec.Struct, frozen=True):
    """Counts since the start; `peers` now."""

    events: int
    commands: int
    violations: int
    relayed: int
    """Tasks that containers handed to each other."""
    posted: int
    """Reports of that which were not sent but stood on a board."""
    peers: int
    arenas: int
    arena_bytes: int
    """Of all arenas."""
    slots_sent: int
    """Slots of which other hosts have bytes, or get them, and that are still read."""
    launcher: LauncherStatistics


class Engine:
    """Runs a core: its containers, its memory, its timer. Lives on one loop; nothing in it is thread-safe."""

    def __init__(self, core: Core, clock: Clock, config: HostConfig) -> None:
        """Nothing is started before the core asks for it. Call `close`."""
        self._loop = asyncio.get_running_loop()
        self._handle = core.handle
        self._now = clock.monotonic
        self._sizes: dict[int, int] = {}
        spill = spill_of(config)
        self._container_arena_bytes = config.container_arena_bytes + (0 if spill is None else spill.cap_bytes)
        self.views = Views(keep_descriptors=True, files_on=spill.device if spill is not None else None)
        self._memory = Memory(self.views, self._sizes, core.ledger.is_held)
        self.arenas = InputArenas(config.host_arena_bytes, self._announce_own, self._drop_arena)
        credentials = Credentials(
            config.peer_token, config.peer_tls_cert_file, config.peer_tls_key_file, config.peer_tls_ca_file
        )
        self.remotes = Remotes(config, self._memory, self, credentials)
        """The hosts that run containers for this one."""
        files_on = None if spill is None else spill.device
        self.lender = None if config.peer_port is None else Lender(config, credentials, files_on)
        """What lets other hosts run containers here."""
        self._launcher = Launcher(clock, config, self._on_exit, spill)
        self._holder = Holder(self._loop, lambda: self._launcher.store.door, config.models, self.feed)
        self._sizes_matter = config.preload or config.device_memory_bytes > 0
        if self._sizes_matter:
            self._launcher.on_zygote, self._launcher.on_zygote_end = self._on_zygote, self._on_zygote_end
        self._peers: dict[int, Peer] = {}
        self._promises = Promises(self._peers)
        self._boards = Boards(self._loop, self._peers, self._promises, self._hear_report)
        self._unread: WeakValueDictionary[str, Receiver] = WeakValueDictionary()
        """Of finished invocations, as long as somebody has them."""
        self._receivers: dict[str, Receiver] = {}
        """By invocation, from `expect` to `FinishInvocation`."""
        self._crowds: dict[str, list[int]] = {}
        """By workflow: how many invocations are under way; its containers share the count."""
        self._crowd_of: dict[str, list[int]] = {}
        """By invocation: the count that it is in."""
        self._done: dict[tuple[str, str], list[int]] = {}
        self._backlog: deque[Event] = deque()
        self._feeding = False
        self._alarm = Alarm(self._loop, self._now, lambda: self.feed(Woke()))
        self._events = self._commands = self._violations = 0
        self._closing = False
        self._guests: dict[int, Callable[[str, frozenset[int] | None], None]] = {}
        """By process: who is to be told that a container that runs for another host is gone."""
        self._watchers: list[asyncio.Future[None]] = []
        self._gathering: dict[int, Peer] = {}
        """Containers for which tasks are kept until the end of this turn of the loop."""
        self.remotes.begin()
        if self.lender is not None:
            self.lender.begin(self._launcher, self._guests.__setitem__)
        self.on_start: StartListener | None = None
        """Told of containers that have become ready."""
        self._execute: dict[type, Callable[[Any], None]] = {
            Tell: self._tell,
            commands.EmitOutput: self._emit,
            commands.EndOutput: self._end_output,
            commands.TakeInput: self._take_input,
            FinishInvocation: self._finish,
            commands.ExpireOutputs: self._expire,
            commands.Preload: self._preload,
            commands.Unload: self._unload,
            commands.SizeWeights: self._size_weights,
            commands.HoldWeights: self._hold_weights,
            commands.DropWeights: self._drop_weights,
            commands.SizeContainer: self._size_container,
            commands.StartContainer: self._start,
            commands.StopContainer: self._stop,
            commands.KillContainer: self._kill,
            commands.DropArena: lambda command: self._drop_arena(command.arena),
            commands.StagePace: _say_pace,
            commands.WakeAt: lambda command: self._alarm.set(command.time),
        }

    # --- events ----------------------------------------------------------------------------------------------

    def expect(self, invocation: str, key: str, receiver: Receiver) -> None:
        """Who is to be told about an invocation of the workflow `key`, whose arrival is to be fed next."""
        self._receivers[invocation] = receiver
        crowd = self._crowd_of[invocation] = self._crowds.setdefault(key, [0])
        crowd[0] += 1

    def feed(self, event: Event) -> None:
        """Give the core an event and carry out its commands. From within a command: after the commands at hand."""
        if self._feeding:
            self._backlog.append(event)
            return
        if self._promises.may_post and self._promises and type(event) is not ContainerSaid:
            self._boards.look()
        self._feeding = True
        execute = self._execute
        try:
            while True:
                todo = self._handle(event, self._now())
                self._events += 1
                self._commands += len(todo)
                for command in todo:
                    if type(command) is Tell:  # by far the most; called straight away where this is compiled
                        self._tell(command)
                    else:
                        execute[type(command)](command)
                if not self._backlog:
                    return
                event = self._backlog.popleft()
        finally:
            self._feeding = False

    def _on_readable(self, peer: Peer, burst: int = BURST) -> None:
        receive = peer.task.receive_nowait
        promises = self._promises
        try:
            peer.check_heard()
            while peer.stalled:
                if promises.is_early(peer.stalled[0][0]):
                    if burst and not peer.is_deaf:  # the loop says that there is more
                        peer.is_deaf = True
                        self._loop.remove_reader(peer.task.fileno())
                    return
                self._take(peer, *peer.stalled.popleft())
            for _ in range(burst):
                payload, descriptors = receive()
                message = _decode(payload)
                if promises and promises.is_early(message) and not self._is_explained(message):
                    peer.stalled.append((message, descriptors))
                    return
                self._take(peer, message, descriptors)
                ended = type(message) is TaskDone or type(message) is TaskFailed
                if ended and burst == BURST and peer.crowd[0] <= CROWD:
                    return  # as a rule its last word for now; if not, the loop calls again at once
        except WouldBlock:
            return
        except (EndOfStream, PeerGone, Closed) as error:
            peer.heard_out = isinstance(error, EndOfStream)
            self._hang_up(peer)
            self._launcher.stop(peer.number)
        except (ProtocolViolation, msgspec.DecodeError, UnicodeDecodeError) as error:
            self._violations += 1
            self._reject(peer, f"broke the protocol: {error}")
        except Exception:  # a fault of ours must not take the other containers along
            _log.exception("handling a message of container %d failed", peer.number)
            self._reject(peer, "the host failed to handle its message")

    def _hear_report(self, peer: Peer, report: bytes) -> None:
        """A report that stood on a container's board: as good as one that it has sent."""
        try:
            message = _decode(report)
            if type(message) is not TaskDone:
                raise ProtocolViolation("posted what is no report")
            if peer.stalled or (self._promises.is_early(message) and not self._is_explained(message)):
                peer.stalled.append((message, []))
            else:
                self._take(peer, message, [])
        except (ProtocolViolation, msgspec.DecodeError, UnicodeDecodeError) as error:
            self._violations += 1
            self._reject(peer, f"broke the protocol: {error}")
        except Exception:  # a fault of ours must not take the other containers along
            _log.exception("handling a report of container %d failed", peer.number)
            self._reject(peer, "the host failed to handle its report")

    def _is_explained(self, message: wire.FromContainer) -> bool:
        """A container speaks of a task of which nothing was heard: is its giver's report on the board?"""
        if not self._promises.may_post:
            return False
        self._boards.find(getattr(message, "task", 0))
        return not self._promises.is_early(message)

    def heard(self, peer: Peer, message: wire.FromContainer, descriptors: list[int]) -> None:
        """A container on another host says something."""
        try:
            self._take(peer, message, descriptors)
        except ProtocolViolation as error:
            self._violations += 1
            self._reject(peer, f"broke the protocol: {error}")

    def sending(self, container: int, message: Sending) -> None:
        """What a container, here or on another host, has still to send."""
        if not self._closing and container in self._peers:
            flow = (message.fresh, message.waiting, message.bytes_per_s)
            self.feed(ContainerSending(container, *flow, message.over, message.run_s))

    def exited(
        self, container: int, reason: str, begun: frozenset[int] | None, owed: frozenset[int] = frozenset()
    ) -> None:
        """A container on another host is gone, or its host is: see `session.Listener`."""
        if not owed:
            self._on_exit(container, reason, begun)
        elif not self._closing:
            self.feed(ContainerDied(container, reason, begun, owed))

    def _take(self, peer: Peer, message: wire.FromContainer, descriptors: list[int]) -> None:
        """Check a message and let the core know. Raises ProtocolViolation."""
        if peer.orphans and getattr(message, "task", 0) in peer.orphans:
            message = self._promises.orphaned(peer, message)
        if descriptors or type(message) is ArenaMade or type(message) is Hello:
            self._on_rare(peer, message, descriptors)
            if type(message) is Knock:
                return
            if type(message) is ArenaMade:
                message = ArenaMade(message.arena, message.nbytes, self.views.is_on_disk(message.arena))
        else:
            peer.check(message)
        freed: tuple[int, ...] = ()
        if type(message) is TaskDone or type(message) is TaskFailed:
            peer.done[0] += 1
            if peer.promises or (type(message) is TaskDone and message.forwarded):
                freed = self._promises.settle(peer, message)
                if freed and self._promises.may_post and self._promises:
                    self._boards.expect()
        elif type(message) is BatchDone:
            peer.done[0] += len(message.results)
        self.feed(ContainerSaid(peer.number, message))
        self._resume(freed)

    def lost(self, slots: tuple[Slot, ...]) -> None:
        """What was only on a host that is gone; its containers were told of before."""
        if not self._closing:
            self.feed(MemoryLost(slots))

    def _resume(self, containers: Iterable[int]) -> None:
        """What these containers said may have waited for what was just heard."""
        for number in containers:
            peer = self._peers.get(number)
            if peer is None or not peer.stalled:
                continue
            if peer.exit_reason:
                self._on_exit(number, peer.exit_reason, peer.exit_begun)
                continue
            self._on_readable(peer, 0)
            if peer.is_deaf and not peer.stalled and peer.task.fileno() >= 0:
                peer.is_deaf = False
                self._loop.add_reader(peer.task.fileno(), functools.partial(self._on_readable, peer))

    def _on_rare(self, peer: Peer, message: wire.FromContainer, descriptors: list[int]) -> None:
        """Messages outside the way of tokens: those with descriptors, or that change what the host knows."""
        if type(message) is ArenaMade and len(descriptors) == 1:
            arena = message.arena
            if arena >> 16 != peer.number or arena in self._sizes:
                os.close(descriptors[0])
                raise ProtocolViolation(f"made an arena under the number {arena:#x}")
            try:
                peer.add_arena(message.nbytes)
            except ProtocolViolation:
                os.close(descriptors[0])
                raise
            try:
                self.views.attach(arena, message.nbytes, descriptors[0])
            except ValueError as error:
                raise ProtocolViolation(str(error)) from error
            self._sizes[arena] = message.nbytes
        elif type(message) is Hello and not descriptors:
            if message.version != wire.VERSION:
                raise ProtocolViolation(f"it speaks version {message.version} of the wire, the host {wire.VERSION}")
            self._loop.call_soon(self._tell_watchers)
            self._launcher.ready(peer.number)
            if self.on_start is not None:
                spawn_s = self._now() - peer.started_at - message.import_s - message.setup_s
                workflow = peer.key.rpartition("@")[0]
                took = (max(0.0, spawn_s), message.import_s, message.setup_s)
                self.on_start(ContainerStart(workflow, peer.stage, *took, message.phases))
            if self._sizes_matter:
                self._size_container(commands.SizeContainer(peer.number))
        elif type(message) is Knock and len(descriptors) == 1:
            self._launcher.store.let_in(peer.number, message.version, descriptors[0])
        else:
            for descriptor in descriptors:
                os.close(descriptor)
            raise ProtocolViolation(f"sent {len(descriptors)} descriptors with {type(message).__name__}")

    def _reject(self, peer: Peer, reason: str) -> None:
        _log.error("container %d (%s, stage %s) is killed: %s", peer.number, peer.key, peer.stage, reason)
        if isinstance(peer, RemotePeer):
            peer.kill(reason)
            return
        self._hang_up(peer)
        self._launcher.kill(peer.number, reason)

    def _hang_up(self, peer: Peer) -> None:
        if peer.is_remote:
            return
        descriptor = peer.task.fileno()
        if descriptor >= 0:
            self._loop.remove_reader(descriptor)
            peer.close()

    def _on_exit(self, container: int, reason: str, begun: frozenset[int] | None) -> None:
        guest = self._guests.pop(container, None)
        if guest is not None:
            guest(reason, begun)
            return
        peer = self._peers.get(container)
        if peer is not None and peer.is_remote:
            del self._peers[container]
        elif peer is not None:
            # What it said before it died counts; the bound is against a process that it left behind with its socket.
            if peer.task.fileno() >= 0:
                self._boards.last_look(container)
                self._on_readable(peer, LAST_WORDS)
            if peer.stalled and not self._closing:
                peer.exit_begun = begun
                peer.exit_reason = reason  # whether these words count is known when another container has spoken
                return
            if peer.task.fileno() < 0 and not peer.heard_out:
                begun = None  # it was hung up on, so it may have ended tasks unheard
            self._hang_up(peer)
            del self._peers[container]
            for other in self._peers.values():
                other.lost(container)
        self.remotes.ended(container)
        if not self._closing:
            self.feed(ContainerExited(container, reason, begun))
            self._tell_watchers()
            if peer is not None:
                self._resume(self._promises.void_all(peer))

    # --- commands --------------------------------------------------------------------------------------------

    def _tell(self, command: Tell) -> None:
        if command.container:
            peer = self._peers.get(command.container)
            if peer is not None:
                message = command.message
                if type(message) is RunTask and not peer.is_remote:
                    if message.then is not None:
                        if self._promises.note(peer.number, message.then):
                            self._boards.expect()
                    elif peer.crowd[0] > CROWD and peer.gather(message):
                        if not self._gathering:
                            self._loop.call_soon(self._send_gathered)
                        self._gathering[peer.number] = peer
                        return
                    peer.send_gathered()
                if not (command.at_leisure and peer.leaves(message)):
                    peer.tell(message)
        if type(command.message) is ReleaseSlots:
            self.remotes.released(command.message.slots)
            if not command.container:
                self.arenas.release(command.message.slots)

    def _send_gathered(self) -> None:
        gathering, self._gathering = self._gathering, {}
        for peer in gathering.values():
            peer.send_gathered()

    def _preload(self, command: commands.Preload) -> None:
        self._launcher.preload(command.modules, command.isolation)

    def _unload(self, command: commands.Unload) -> None:
        self._launcher.unload(command.modules, command.isolation)

    def _size_weights(self, command: commands.SizeWeights) -> None:
        self._holder.size(command.model)

    def _hold_weights(self, command: commands.HoldWeights) -> None:
        self._holder.hold(command.models)

    def _drop_weights(self, command: commands.DropWeights) -> None:
        self._holder.drop(command.model)

    def _size_container(self, command: commands.SizeContainer) -> None:
        if pid := self._launcher.pids().get(command.container):
            self._measure(private_bytes, pid, lambda nbytes: ContainerSized(command.container, nbytes))

    def _measure(self, measure: Callable[[int], int], pid: int, tell: Callable[[int], Event]) -> None:
        """Have the core told, soon, how much memory a process has."""

        def told(done: asyncio.Future[int]) -> None:
            if not self._closing:
                self.feed(tell(done.result()))

        self._loop.run_in_executor(None, measure, pid).add_done_callback(told)

    def _on_zygote_end(self, modules: tuple[str, ...]) -> None:
        self.feed(ZygoteEnded(modules))

    def _on_zygote(self, modules: tuple[str, ...], seconds: float, pid: int) -> None:
        self._measure(anonymous_bytes, pid, lambda nbytes: ZygoteStarted(modules, seconds, nbytes))

    def _start(self, command: commands.StartContainer) -> None:
        number = command.container
        cap = self._container_arena_bytes
        try:
            peer: Peer | None = self.remotes.start(command, self._peers)
            if peer is None:
                links = self._launcher.start(command)
                board = self._launcher.board(number)
                peer = Peer(self._loop, command, links, self._memory, self._peers, arena_cap_bytes=cap, board=board)
        except OSError as error:  # out of descriptors, or of processes
            _log.error("a container of %s, stage %s, could not be started: %s", command.key, command.stage.name, error)
            self._launcher.kill(number, f"could not be started: {error}")
            self._backlog.append(ContainerExited(number, f"could not be started: {error}"))
            return
        peer.started_at = self._now()
        peer.done = self._done.setdefault((command.key, command.stage.name), [0])
        peer.crowd = self._crowds.setdefault(command.key, [0])
        self._peers[number] = peer
        if peer.is_remote:
            return
        self._loop.add_reader(peer.task.fileno(), functools.partial(self._on_readable, peer))

    def _stop(self, command: commands.StopContainer) -> None:
        peer = self._peers.get(command.container)
        if isinstance(peer, RemotePeer):
            peer.leave()
        elif peer is not None:
            self._hang_up(peer)
            self._launcher.stop(command.container)

    def _kill(self, command: commands.KillContainer) -> None:
        peer = self._peers.get(command.container)
        if peer is not None:
            _log.warning("container %d (%s, stage %s) is killed: %s", peer.number, peer.key, peer.stage, command.reason)
        if isinstance(peer, RemotePeer):
            peer.kill(command.reason)
        else:
            self._launcher.kill(command.container, command.reason)

    def _emit(self, command: commands.EmitOutput) -> None:
        receiver = self._receivers.get(command.invocation)
        if receiver is not None:
            receiver.on_emit(command.port, command.index, command.value)

    def _end_output(self, command: commands.EndOutput) -> None:
        receiver = self._receivers.get(command.invocation)
        if receiver is not None:
            receiver.on_end_output(command.port, command.absent)

    def _take_input(self, command: commands.TakeInput) -> None:
        receiver = self._receivers.get(command.invocation)
        if receiver is not None:
            receiver.on_take_input(command.port, command.items)

    def _finish(self, command: FinishInvocation) -> None:
        receiver = self._receivers.pop(command.invocation, None)
        if receiver is not None:
            self._crowd_of.pop(command.invocation)[0] -= 1
        if receiver is not None and not receiver.on_finish(command):
            self._unread[command.invocation] = receiver

    def _expire(self, command: commands.ExpireOutputs) -> None:
        receiver = self._unread.get(command.invocation)
        if receiver is None:  # whoever could have read them is gone
            self.feed(InvocationReleased(command.invocation))
        else:
            receiver.on_expire()

    def _drop_arena(self, arena: int) -> None:
        if self._sizes.pop(arena, None) is None:
            return
        for peer in self._peers.values():
            peer.drop_arena(arena)
        self.remotes.drop_arena(arena)
        self.views.detach(arena)

    def _announce_own(self, arena: int, nbytes: int, descriptor: int) -> None:
        self._sizes[arena] = nbytes
        self.views.attach(arena, nbytes, os.dup(descriptor))

    # --- for others ------------------------------------------------------------------------------------------

    def container_changed(self) -> asyncio.Future[None]:
        """Done when the next container has become ready or is gone."""
        watcher = self._loop.create_future()
        self._watchers.append(watcher)
        return watcher

    def _tell_watchers(self) -> None:
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            if not watcher.done():
                watcher.set_result(None)

    # --- end -------------------------------------------------------------------------------------------------

    def done(self, key: str, stage: str) -> int:
        """Tasks of a stage whose container has told of their end, well or ill."""
        return self._done.get((key, stage), (0,))[0]

    def pids(self) -> dict[int, int]:
        """Process ids of the running containers, by number."""
        return self._launcher.pids()

    def zygote_pids(self) -> tuple[int, ...]:
        """Process ids of the fork servers."""
        return self._launcher.zygote_pids()

    async def weights(self) -> Statistics | None:
        """What the store of weights holds and how fast it loads; None while there is none."""
        return await self._launcher.store.statistics()

    def statistics(self) -> EngineStatistics:
        """Counts now."""
        return EngineStatistics(
            events=self._events,
            commands=self._commands,
            violations=self._violations,
            relayed=self._promises.kept,
            posted=self._boards.found,
            peers=len(self._peers),
            arenas=len(self._sizes),
            arena_bytes=sum(self._sizes.values()),
            slots_sent=self.remotes.slots + (0 if self.lender is None else self.lender.slots),
            launcher=self._launcher.statistics(),
        )

    async def close(self) -> None:
        """Stop all containers and fork servers and return when nothing is left of them. Idempotent."""
        if self._closing:
            return
        self._closing = True
        self._alarm.close()
        self._boards.close()
        for peer in list(self._peers.values()):
            self._hang_up(peer)
        if self.lender is not None:
            await self.lender.close()
        await self.remotes.close()
        self._holder.close()
        await self._launcher.close()
        self.arenas.close()
        self.views.close()


def _say_pace(command: commands.StagePace) -> None:
    if command.is_slow:
        _log.warning(
            "%s: runs of stage %r take %.2f times what its plan says, so fewer calls are let in: let the plan follow "
            "(`dataflower apply --replan on`), or profile this machine and plan again",
            command.key,
            command.stage,
            command.factor,
        )
    else:
        _log.info("%s: runs of stage %r take what its plan says again", command.key, command.stage)
