"""A lender may answer its owner with anything: only its own session and containers end, and the owner goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from test_hostile_container import messages, numbers, small

from dataflower import wire
from dataflower.channel.ferry import Ferry, Forget, Mirror, Parcel
from dataflower.channel.mux import MuxError
from dataflower.core import commands, events
from dataflower.core.host import CoreConfig, HostCore
from dataflower.core.program import compile_program
from dataflower.host import engine as engine_module
from dataflower.host import peer_wire
from dataflower.host.engine import Engine
from dataflower.host.launcher import LauncherStatistics
from dataflower.host.remote_peer import refs_of
from dataflower.host.remotes import Remote
from dataflower.host.settings import HostConfig
from dataflower.spec.workflow import Retry
from dataflower.testing.story import stage, workflow

ARENA_BYTES = 1 << 20
VALUE = wire.Value(b"\x01")
encode = msgspec.msgpack.Encoder().encode

keys = (
    small
    | st.integers(1, 6).map(lambda number: number + peer_wire.ASIDE)
    | st.integers(0, 6).map(lambda number: number + peer_wire.TICKETS)
    | numbers
)
arenas = st.tuples(st.integers(0, 6), st.integers(0, 2)).map(lambda pair: (pair[0] << 16) + pair[1]) | numbers
sizes = st.sampled_from([4096, ARENA_BYTES, 1 << 40, 1 << 62, (1 << 63) - 1]) | numbers
some = st.lists(small | numbers, max_size=3).map(tuple)
reports = st.one_of(
    messages,
    st.builds(peer_wire.Ended, st.text(max_size=5), st.none() | some),
    st.builds(peer_wire.Sending, numbers, numbers, st.floats() | st.floats(0, 1e9), some, st.floats()),
    st.builds(peer_wire.Expecting, small | numbers),
    st.builds(peer_wire.Met, small | numbers),
    st.builds(peer_wire.Parted, small | numbers, st.text(max_size=5), some),
)
bodies = reports.map(wire.encode) | st.binary(max_size=30)
parcels = st.builds(Parcel, keys, bodies, some, st.booleans(), some, st.booleans()) | st.builds(Parcel, keys, bodies)
lies = st.one_of(
    parcels.map(encode),
    parcels.map(encode),
    st.builds(Mirror, arenas, sizes).map(encode),
    st.builds(Forget, arenas).map(encode),
    st.binary(max_size=40),
    st.tuples(parcels.map(encode), st.integers(0, 200), st.integers(0, 255)).map(
        lambda lie: lie[0][: lie[1]] + bytes([lie[2]]) + lie[0][lie[1] + 1 :]
    ),
)
moves = st.tuples(
    st.sampled_from(["say", "say", "about", "about", "claim", "claim", "push", "work", "work", "bytes"]),
    lies,
    reports,
    small,
    arenas,
)


Move = tuple[str, bytes, Any, int, int]
"""How, words for a connection, a report, a number, an arena."""


class Checked:
    """The core, with its books checked after each event."""

    def __init__(self) -> None:
        self.core = HostCore(CoreConfig(cpus=4, max_containers=8))
        self.ledger = self.core.ledger

    def handle(self, event: events.Event, now: float) -> list[commands.Command]:
        found = self.core.handle(event, now)
        self.core.check_integrity()
        return found


class Clock:
    """Goes on a little with each look."""

    def __init__(self) -> None:
        self.now = 1.0

    def monotonic(self) -> float:
        self.now += 0.0001
        return self.now


class NoLauncher:
    """There are no containers here."""

    on_zygote = on_zygote_end = None

    def __init__(self, *_: Any) -> None:
        self.store = mock.Mock(door=None)

    def preload(self, *_: Any) -> None: ...

    def unload(self, *_: Any) -> None: ...

    def ready(self, container: int) -> None: ...

    def statistics(self) -> LauncherStatistics:
        return LauncherStatistics(0, 0, 0)

    async def close(self) -> None: ...


class Receiver:
    """Of an invocation."""

    def __init__(self, sizes: dict[int, int]) -> None:
        self.finished: list[commands.FinishInvocation] = []
        self.sizes = sizes

    def on_emit(self, port: str, index: int, value: wire.Value) -> None:
        for ref in refs_of(value):
            assert ref.arena in self.sizes, "a result names memory that is not there"

    def on_end_output(self, port: str, absent: bool) -> None: ...

    def on_take_input(self, port: str, items: int) -> None: ...

    def on_finish(self, command: commands.FinishInvocation) -> None:
        self.finished.append(command)

    def on_expire(self) -> None: ...


class Lender:
    """The other end of a session: works as it should, or says what it is told to say."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self.ended = 0
        self.meet()

    def meet(self) -> None:
        """A new session; nothing is left of the one before."""
        self.session = self.remote.session
        self.stages: dict[int, str] = {}
        self.tasks: dict[int, list[int]] = {}
        self.arenas: set[int] = set()
        self.ferry = Ferry(
            lambda ref: memoryview(bytes(ref.nbytes)), self.hear, lambda arena, nbytes: None, lambda arena: None
        )
        self.ferry.mux.connected()
        self.session.ferry.mux.connected()

    def hear(self, key: int, body: bytes) -> None:
        if key > peer_wire.ASIDE:
            return
        order = peer_wire.decode_order(body)
        if isinstance(order, peer_wire.Order):
            self.stages[key] = order.stage.name
            self.say(key, wire.Hello(wire.VERSION, 1))
        elif isinstance(order, wire.RunTask):
            self.tasks.setdefault(key, []).append(order.task)
        elif isinstance(order, wire.RunBatch):
            self.tasks.setdefault(key, []).extend(task.task for task in order.tasks)
        elif isinstance(order, (peer_wire.Stop, peer_wire.Kill)) and self.stages.pop(key, None):
            self.tasks.pop(key, None)
            self.say(key, peer_wire.Ended("left", ()))

    def say(self, key: int, message: Any, refs: tuple[wire.TensorRef, ...] = ()) -> None:
        self.ferry.send(key, wire.encode(message), refs)

    def work(self) -> None:
        """Every task is done, its output in memory."""
        for key, tasks in self.tasks.items():
            arena = key << 16
            if tasks and arena not in self.arenas:
                self.arenas.add(arena)
                self.ferry.announce(arena, ARENA_BYTES)
                self.say(key, wire.ArenaMade(arena, ARENA_BYTES))
            for task in tasks:
                offset = 4096 * (task % 256)
                ref = wire.TensorRef(arena, offset, offset, 64, "UINT8", (64,))
                name = "t" if self.stages[key] == "make" else "out"
                self.say(key, wire.TaskDone(task, {name: wire.Value(b"\xd4\x01\x00", (ref,))}, 0, wire.Times()), (ref,))
            tasks.clear()

    def pump(self) -> bool:
        """Bytes go both ways; the owner ends the session over what a connection would end it for."""
        if self.remote.session is not self.session:
            self.ferry.close()
            self.meet()
        here, there = self.session.ferry.mux, self.ferry.mux
        moved = not self.session.is_over and carry(here, there)
        if self.session.is_over:
            return moved
        try:
            return carry(there, here) or moved
        except (MuxError, msgspec.MsgspecError) as error:
            self.break_off(str(error))
            return True

    def throw(self, data: bytes) -> None:
        """Bytes straight into the connection."""
        if not self.session.is_over:
            try:
                feed(self.session.ferry.mux, data)
            except (MuxError, msgspec.MsgspecError) as error:
                self.break_off(str(error))

    def break_off(self, reason: str) -> None:
        self.ended += 1
        self.remote._on_lost(reason, True)


def carry(source: Any, target: Any) -> bool:
    data = b"".join(source.outgoing())
    source.wrote(len(data))
    feed(target, data)
    return bool(data)


def feed(mux: Any, data: bytes) -> None:
    while data:
        taken = 0
        for buffer in mux.incoming():
            step = min(len(buffer), len(data) - taken)
            buffer[:step] = data[taken : taken + step]
            taken += step
        data = data[taken:]
        mux.received(taken)


class Owner:
    """A real engine and core whose stages all run on two lenders, one of which lies."""

    def __init__(self) -> None:
        config = HostConfig(
            host_name="owner",
            peers=("liar=127.0.0.1:1", "good=127.0.0.1:2"),
            peer_token="0123456789abcdef" * 4,
            placement=("w.make=liar", "w.each=liar", "w.all=good", "p.only=good"),
        )
        self.checked = Checked()
        self.engine = Engine(self.checked, Clock(), config)
        self.receivers: dict[str, Receiver] = {}
        again = Retry(max_attempts=2, interval_s=0.0, jitter="none")
        stages = [
            stage("make", {"x": "inputs.x"}, ["t"], retry=again),
            stage("each", {"t": "make.t"}, retry=again),
            stage("all", {"t": "make.t"}),
        ]
        flow = workflow(stages, {"r": "each.out", "s": "all.out"})
        plain = workflow([stage("only", {"x": "inputs.x"})], {"r": "only.out"})
        self.engine.feed(events.WorkflowAdded("w@1", compile_program(flow)))
        self.engine.feed(events.WorkflowAdded("p@1", compile_program(plain)))
        self.liar, self.good = (Lender(self.engine.remotes._remotes[name]) for name in ("liar", "good"))

    def invoke(self, name: str, workflow: str) -> Receiver:
        receiver = self.receivers[name] = Receiver(self.engine._sizes)
        self.engine.expect(name, workflow, receiver)
        self.engine.feed(events.InvocationArrived(name, workflow, {"x": VALUE}))
        return receiver

    async def settle(self) -> None:
        for _ in range(50):
            await asyncio.sleep(0)
            moved = self.liar.pump()
            if not (self.good.pump() or moved):
                return

    def lie(self, move: tuple[str, bytes, Any, int, int]) -> None:
        how, lie, report, number, arena = move
        liar = self.liar
        known = sorted(liar.stages)
        if how == "work":
            liar.work()
        elif how == "say":
            liar.ferry.mux.send(lie)
        elif how == "bytes":
            liar.throw(lie)
        elif how == "push":
            if 0 <= arena < 1 << 62:
                if number % 2:
                    liar.ferry.announce(arena, ARENA_BYTES)
                place = abs(number) * ARENA_BYTES // 4
                liar.ferry.push(wire.TensorRef(arena, place, place, 70_000, "", ()), lambda arena: ARENA_BYTES)
        elif known:
            key = known[number % len(known)]
            task = next(iter(liar.tasks.get(key, ())), number)
            if how == "claim" and liar.tasks.get(key) and -(2**63) <= arena < 2**64:
                # A result as it should be, but for the memory that it names.
                task = liar.tasks[key].pop(0)
                ref = wire.TensorRef(arena, 4096, 4096, 64, "UINT8", (64,))
                name = "t" if liar.stages[key] == "make" else "out"
                report = wire.TaskDone(task, {name: wire.Value(b"\xd4\x01\x00", (ref,))}, 0, wire.Times())
            elif how == "about" and hasattr(report, "task"):
                report = msgspec.structs.replace(report, task=task)
            liar.ferry.mux.send(encode(Parcel(key, wire.encode(report))))


@contextmanager
def no_processes() -> Iterator[None]:
    with (
        mock.patch.object(engine_module, "Launcher", NoLauncher),
        mock.patch.object(Remote, "begin"),
    ):
        yield


async def story(said: list[Move]) -> None:
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
    with no_processes():
        owner = Owner()
        try:
            await tell(owner, said)
            assert not faults
        finally:
            for lender in (owner.liar, owner.good):
                lender.ferry.close()
                lender.remote.session.end("the end")
            await owner.engine.close()


async def tell(owner: Owner, said: list[Move]) -> None:
    honest = owner.good.session
    for count, move in enumerate(said):
        if not any(not receiver.finished for receiver in owner.receivers.values()):
            owner.invoke(f"w{count}", "w@1")
        await owner.settle()
        owner.lie(move)
        await owner.settle()
        owner.good.work()
        await owner.settle()
    receiver = owner.invoke("good", "p@1")
    for _ in range(4):
        owner.good.work()
        await owner.settle()
    assert [command.failure for command in receiver.finished] == [None]
    assert owner.good.session is honest
    assert not honest.is_over
    assert not owner.good.ended
    for name in owner.receivers:
        owner.engine.feed(events.InvocationReleased(name))
    owner.liar.remote._on_lost("the end", True)
    await owner.settle()
    assert owner.checked.ledger.slots == 0
    assert owner.checked.core.statistics().invocations == 0


@settings(max_examples=150, deadline=None)
@given(st.lists(moves, max_size=12))
def test_whatever_a_lender_answers_ends_that_lender_alone(said: list[Move]) -> None:
    asyncio.run(story(said))
