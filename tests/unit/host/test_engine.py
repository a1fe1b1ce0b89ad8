"""The engine between a scripted core and scripted containers: what it carries out, and whom it does not believe."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from dataflower import wire
from dataflower.channel import seals
from dataflower.channel.board import MOST_RETURNS, Board, BoardWriter
from dataflower.channel.link import Link
from dataflower.clock import SystemClock
from dataflower.core import commands
from dataflower.core.commands import Command, Tell
from dataflower.core.events import ContainerExited, ContainerSaid, Event, Woke
from dataflower.core.ledger import Ledger
from dataflower.core.trace import InvocationTrace
from dataflower.errors import Code, WouldBlock
from dataflower.host import engine as engine_module
from dataflower.host.engine import Engine
from dataflower.host.launcher import LauncherStatistics
from dataflower.host.settings import HostConfig
from dataflower.spec.workflow import Scaling, Stage
from dataflower.wire import TensorRef, Value

NO_TIMES = wire.Times()
INBOX, TASK, CONTROL = 0, 1, 2


class ScriptedCore:
    """Answers each event with the commands that the test has prepared, and remembers the events."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.events: list[Event] = []
        self.answers: list[list[Command]] = []

    def handle(self, event: Event, now: float) -> list[Command]:
        self.events.append(event)
        return self.answers.pop(0) if self.answers else []


class ScriptedLauncher:
    """Containers that are socket pairs: `theirs[n]` is what the container holds."""

    def __init__(
        self, clock: Any, config: Any, on_exit: Callable[[int, str, frozenset[int]], None], spill: Any = None
    ) -> None:
        self.on_exit = on_exit
        self.theirs: dict[int, tuple[Link, Link, Link]] = {}
        self.boards: dict[int, tuple[Board, BoardWriter]] = {}
        self.killed: dict[int, str] = {}
        self.stopped: list[int] = []
        self.ready_ones: list[int] = []

    def start(self, command: commands.StartContainer) -> tuple[Link, Link, Link]:
        (inbox, inbox_end), (task, task_end), (control, control_end) = Link.pair(), Link.pair(), Link.pair()
        self.theirs[command.container] = (inbox_end, task_end, control_end)
        board = Board(1)
        self.boards[command.container] = (board, BoardWriter(os.dup(board.descriptor), 1))
        return inbox, task, control

    def board(self, container: int) -> Board:
        return self.boards[container][0]

    def ready(self, container: int) -> None:
        self.ready_ones.append(container)

    def stop(self, container: int) -> None:
        self.stopped.append(container)

    def kill(self, container: int, reason: str) -> None:
        self.killed[container] = reason

    def statistics(self) -> LauncherStatistics:
        return LauncherStatistics(0, len(self.theirs), 0)

    async def close(self) -> None:
        for links in self.theirs.values():
            for link in links:
                link.close()
        for board, writer in self.boards.values():
            writer.close()
            board.close()


class Rig:
    def __init__(self, engine: Engine, core: ScriptedCore, launcher: ScriptedLauncher) -> None:
        self.engine, self.core, self.launcher = engine, core, launcher

    def do(self, *wanted: Command) -> None:
        """Have the core order these."""
        self.core.answers.append(list(wanted))
        self.engine.feed(Woke())

    def start(self, *numbers: int) -> None:
        self.do(*(commands.StartContainer(number, "w@1", Stage(name="s", function="m:f")) for number in numbers))

    async def say(self, container: int, message: Any, fds: tuple[int, ...] = ()) -> None:
        payload = message if isinstance(message, bytes) else wire.encode(message)
        self.launcher.theirs[container][TASK].send(payload, fds)
        for _ in range(5):
            await asyncio.sleep(0)

    def post(self, container: int, message: wire.TaskDone | bytes, *, handed: bool = True) -> None:
        """Have a container leave a report on its board."""
        writer = self.launcher.boards[container][1]
        number = writer.post(message if isinstance(message, bytes) else wire.encode(message))
        assert number
        if handed:
            writer.handed(number)

    def hear(self, container: int, socket: int = INBOX) -> list[Any]:
        """What the container was told in its inbox or on its control socket; descriptors are closed."""
        heard = []
        while True:
            try:
                payload, fds = self.launcher.theirs[container][socket].receive_nowait()
            except WouldBlock:
                return heard
            for fd in fds:
                os.close(fd)
            heard.append((wire.decode_to_container(payload), len(fds)) if fds else wire.decode_to_container(payload))

    async def give_arena(self, container: int, n: int = 0) -> int:
        arena = container << 16 | n
        fd = seals.make("test")
        os.ftruncate(fd, 4096)
        seals.seal(fd, seals.RESIZE | seals.FUTURE_WRITE)
        await self.say(container, wire.ArenaMade(arena, 4096), (fd,))
        os.close(fd)
        return arena


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    launchers: list[ScriptedLauncher] = []

    def make(*arguments: Any) -> ScriptedLauncher:
        launchers.append(ScriptedLauncher(*arguments))
        return launchers[-1]

    monkeypatch.setattr(engine_module, "Launcher", make)
    core = ScriptedCore()
    engine = Engine(core, SystemClock(), HostConfig())
    yield Rig(engine, core, launchers[0])
    await engine.close()


def by_reference(arena: int, offset: int = 0, nbytes: int = 16) -> Value:
    return Value(b"", (TensorRef(arena, 0, offset, nbytes, "UINT8", (nbytes,)),))


def run_with(*values: Value, task: int = 1) -> wire.RunTask:
    return wire.RunTask(task, (wire.Gathered("x", values),))


async def test_messages_reach_the_core_in_order(rig: Rig) -> None:
    rig.start(1)
    said = [wire.Hello(wire.VERSION, 7), wire.TaskDone(1, {"out": Value(b"\x01")}, 0, NO_TIMES), wire.Unheld(())]
    for message in said:
        rig.launcher.theirs[1][TASK].send(wire.encode(message))
    await rig.say(1, wire.Taken(1, "x", 3))
    assert rig.core.events[1:] == [ContainerSaid(1, m) for m in (*said, wire.Taken(1, "x", 3))]


async def test_an_arena_is_introduced_once_on_each_socket_before_it_is_named(rig: Rig) -> None:
    rig.start(1, 2)
    arena = await rig.give_arena(1)
    value = by_reference(arena)
    feed = wire.Feed(1, "x", (value,))
    rig.do(Tell(2, run_with(value, value)), Tell(2, feed), Tell(2, run_with(value, task=2)), Tell(2, feed))
    assert rig.hear(2) == [(wire.AttachArena(arena, 4096), 1), run_with(value, value), run_with(value, task=2)]
    assert rig.hear(2, CONTROL) == [(wire.AttachArena(arena, 4096), 1), feed, feed]


async def test_an_own_arena_needs_no_introduction(rig: Rig) -> None:
    rig.start(1)
    value = by_reference(await rig.give_arena(1))
    rig.do(Tell(1, run_with(value)))
    assert rig.hear(1) == [run_with(value)]


async def test_a_dropped_arena_is_forgotten_everywhere(rig: Rig) -> None:
    rig.start(1, 2, 3)
    arena = await rig.give_arena(1)
    rig.do(Tell(2, run_with(by_reference(arena))))
    rig.hear(2)
    rig.do(commands.DropArena(arena))
    assert rig.hear(2) == [wire.DetachArena(arena)]
    assert rig.hear(3) == []
    assert rig.engine.statistics().arenas == 0


async def test_a_full_socket_delays_messages_but_not_the_host(rig: Rig) -> None:
    rig.start(1)
    big = Value(b"x" * 30_000)
    sent = [wire.Feed(1, "x", (big,)) for _ in range(200)]
    rig.do(*(Tell(1, message) for message in sent))
    heard: list[Any] = []
    while len(heard) < len(sent):
        heard += rig.hear(1, CONTROL)
        await asyncio.sleep(0)
    assert heard == sent


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\xc1 nonsense", "broke the protocol"),
        (wire.encode(wire.FeedEnd(1, "x")), "broke the protocol"),
        (wire.TaskDone(1, {"out": by_reference(2 << 16)}, 0, NO_TIMES), "not given"),
        (wire.TokenSent(1, 0, {"out": by_reference(1 << 16, offset=4090)}), "outside arena"),
        (wire.TokenSent(1, 0, {"out": by_reference(1 << 16, nbytes=-1)}), "outside arena"),
        (wire.TaskDone(1, {}, 0, NO_TIMES, held=((2 << 16, 0),)), "not given"),
        (wire.Unheld(((2 << 16, 0),)), "not given"),
        (wire.ArenaMade(1 << 16, 4096), "0 descriptors"),
        (wire.Hello(wire.VERSION + 1, 7), "version"),
    ],
)
async def test_what_no_honest_container_says_is_its_death(rig: Rig, message: Any, reason: str) -> None:
    rig.start(1, 2)
    await rig.give_arena(1)
    await rig.give_arena(2)
    before = len(rig.core.events)
    await rig.say(1, message)
    assert reason in rig.launcher.killed[1]
    assert rig.core.events[before:] == []
    await rig.say(2, wire.Unheld(()))
    assert rig.core.events[-1] == ContainerSaid(2, wire.Unheld(()))
    assert rig.engine.statistics().violations == 1


async def test_a_given_arena_may_be_named_only_where_somebody_reads(rig: Rig) -> None:
    rig.start(1, 2)
    value = by_reference(await rig.give_arena(1))
    rig.do(Tell(2, run_with(value)))
    rig.core.ledger.hold(value)
    await rig.say(2, wire.TokenSent(1, 0, {"out": value}))
    assert rig.core.events[-1] == ContainerSaid(2, wire.TokenSent(1, 0, {"out": value}))
    rig.core.ledger.drop(value)
    await rig.say(2, wire.TokenSent(1, 1, {"out": value}))
    assert "nobody reads" in rig.launcher.killed[2]


async def test_descriptors_that_nobody_asked_for_are_closed(rig: Rig) -> None:
    rig.start(1)
    await rig.say(1, wire.Unheld(()), (0, 0))
    assert "2 descriptors" in rig.launcher.killed[1]


async def test_an_arena_under_a_foreign_number_or_without_seals_is_refused(rig: Rig) -> None:
    rig.start(1, 2)
    await rig.say(1, wire.ArenaMade(2 << 16, 4096), (0,))
    assert "arena" in rig.launcher.killed[1]
    fd = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    await rig.say(2, wire.ArenaMade(2 << 16, 4096), (fd,))
    os.close(fd)
    assert 2 in rig.launcher.killed
    assert rig.engine.statistics().arenas == 0


async def test_last_words_are_heard_before_the_death_is_told(rig: Rig) -> None:
    rig.start(1)
    _, task_end, _ = rig.launcher.theirs[1]
    for task in range(100):
        task_end.send(wire.encode(wire.TaskDone(task, {}, 0, NO_TIMES)))
    task_end.close()
    rig.launcher.on_exit(1, "was killed", frozenset({3}))
    said = [event.message.task for event in rig.core.events if isinstance(event, ContainerSaid)]  # type: ignore[union-attr]
    assert said == list(range(100))
    assert rig.core.events[-1] == ContainerExited(1, "was killed", frozenset({3}))


async def test_stopping_is_the_end_of_both_sockets(rig: Rig) -> None:
    rig.start(1)
    rig.do(commands.StopContainer(1))
    assert rig.launcher.stopped == [1]
    for link in rig.launcher.theirs[1]:
        with pytest.raises(Exception, match=r"closed|peer"):
            link.receive_nowait()


async def test_the_timer_wakes_the_core_at_the_latest_time_it_asked_for(rig: Rig) -> None:
    clock = SystemClock()
    woken = asyncio.get_running_loop().create_future()
    due = clock.monotonic() + 0.02
    rig.do(commands.WakeAt(due - 0.01), commands.WakeAt(due))
    handle = rig.core.handle

    def watch(event: Event, now: float) -> list[Command]:
        if isinstance(event, Woke) and not woken.done():
            woken.set_result(now)
        return handle(event, now)

    rig.engine._handle = watch
    assert await woken >= due


# --- many at a time -----------------------------------------------------------------------------------------------


def crowd(rig: Rig, key: str = "w@1") -> None:
    """More invocations of a workflow than are served one by one."""
    for n in range(engine_module.CROWD + 1):
        rig.engine.expect(f"{key}/{n}", key, Mute())


def one(value: Value | None = None, task: int = 1) -> wire.RunTask:
    return wire.RunTask(task, (wire.Single("x", value or Value(b"\x01")),))


class Mute:
    """Nobody's invocation."""

    def on_emit(self, port: str, index: int, value: Value) -> None: ...
    def on_end_output(self, port: str, absent: bool) -> None: ...
    def on_take_input(self, port: str, items: int) -> None: ...
    def on_finish(self, command: commands.FinishInvocation) -> None: ...


async def turns() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_few_invocations_wait_for_nobody(rig: Rig) -> None:
    rig.start(1)
    rig.do(*(Tell(1, one(task=n)) for n in (1, 2)))
    assert rig.hear(1) == [one(task=1), one(task=2)]


async def test_many_invocations_of_one_workflow_hold_up_no_other(rig: Rig) -> None:
    rig.start(1)
    crowd(rig, "other@1")
    rig.do(Tell(1, one(task=1)))
    assert rig.hear(1) == [one(task=1)]


async def test_when_the_many_have_ended_nobody_is_waited_for(rig: Rig) -> None:
    rig.start(1)
    crowd(rig)
    trace = InvocationTrace("w@1/0", "w@1", 0.0)
    rig.do(*(commands.FinishInvocation(f"w@1/{n}", None, trace) for n in range(engine_module.CROWD + 1)))
    rig.do(Tell(1, one(task=1)))
    assert rig.hear(1) == [one(task=1)]


async def test_tasks_of_one_turn_go_out_together_when_there_are_many(rig: Rig) -> None:
    rig.start(1, 2)
    crowd(rig)
    rig.do(Tell(1, one(task=1)), Tell(2, one(task=2)))
    rig.do(Tell(1, one(task=3)))
    assert rig.hear(1) == []
    await turns()
    assert rig.hear(1) == [wire.RunMany((one(task=1), one(task=3)))]
    assert rig.hear(2) == [one(task=2)]


async def test_no_more_go_out_together_than_fit_and_their_order_stays(rig: Rig) -> None:
    rig.start(1)
    crowd(rig)
    large = one(Value(b"\xc5" + bytes(9000)), task=20)
    rig.do(*(Tell(1, one(task=n)) for n in range(1, 12)), Tell(1, large), Tell(1, one(task=21)))
    first, second, third = rig.hear(1)
    assert [task.task for task in first.tasks] == list(range(1, 9))
    assert [task.task for task in second.tasks] == [9, 10, 11]
    assert third == large
    await turns()
    assert rig.hear(1) == [one(task=21)]


async def test_a_container_with_several_threads_gets_its_tasks_one_by_one(rig: Rig) -> None:
    shared = Stage(name="s", function="m:f", scaling=Scaling(concurrency=2))
    rig.do(commands.StartContainer(1, "w@1", shared))
    crowd(rig)
    rig.do(Tell(1, one(task=1)), Tell(1, one(task=2)))
    assert rig.hear(1) == [one(task=1), one(task=2)]


async def test_arenas_of_tasks_that_go_out_together_are_introduced_before(rig: Rig) -> None:
    rig.start(1, 2)
    arena = await rig.give_arena(1)
    crowd(rig)
    task = one(by_reference(arena))
    rig.do(Tell(2, task), Tell(2, one(task=2)))
    await turns()
    assert rig.hear(2) == [(wire.AttachArena(arena, 4096), 1), wire.RunMany((task, one(task=2)))]


async def test_a_container_that_is_gone_by_then_is_no_trouble(rig: Rig) -> None:
    rig.start(1)
    crowd(rig)
    rig.do(Tell(1, one(task=1)), commands.StopContainer(1))
    await turns()
    assert rig.launcher.stopped == [1]


# --- containers that hand on --------------------------------------------------------------------------------------


def handing_on(task: int = 1, *receivers: int) -> wire.RunTask:
    """A task whose outputs may go to these containers, one after the other, as tasks 11, 12, ..."""
    then = None
    for position in reversed(range(len(receivers))):
        then = wire.Next(receivers[position], 11 + position, (("x", "out"),), then=then, may_post=True)
    return wire.RunTask(task, (), then=then)


def done(task: int, forwarded: int = 0, value: Value | None = None) -> wire.TaskDone:
    return wire.TaskDone(task, {"out": value or Value(b"\x01")}, 0, NO_TIMES, (), forwarded)


def tasks_heard(rig: Rig) -> list[int]:
    said = [event.message for event in rig.core.events if isinstance(event, ContainerSaid)]
    return [message.task for message in said if isinstance(message, wire.TaskDone)]


async def test_ways_are_opened_once_and_before_they_are_needed(rig: Rig) -> None:
    rig.start(1, 2, 3)
    rig.do(Tell(1, handing_on(1, 2, 3)), Tell(1, handing_on(2, 2, 3)))
    assert rig.hear(1) == [(wire.OpenLink(2), 1), handing_on(1, 2, 3), handing_on(2, 2, 3)]
    assert rig.hear(2) == [(wire.OpenLink(3), 1)]
    rig.launcher.on_exit(2, "died", frozenset())
    assert rig.hear(1) == [wire.CloseLink(2)]


async def test_words_about_a_task_wait_for_the_report_of_its_giver(rig: Rig) -> None:
    rig.start(1, 2, 3)
    rig.do(Tell(1, handing_on(1, 2, 3)))
    await rig.say(3, done(12))
    await rig.say(2, done(11, forwarded=12))
    assert tasks_heard(rig) == []
    await rig.say(1, done(1, forwarded=11))
    assert tasks_heard(rig) == [1, 11, 12]
    await rig.say(3, done(13))  # and it is listened to again
    assert tasks_heard(rig) == [1, 11, 12, 13]
    assert rig.engine.statistics().relayed == 2


async def test_what_is_posted_is_found_when_the_next_speaks(rig: Rig) -> None:
    rig.start(1, 2, 3)
    rig.do(Tell(1, handing_on(1, 2, 3)))
    rig.post(1, done(1, forwarded=11), handed=False)
    rig.post(2, done(11, forwarded=12), handed=False)
    assert tasks_heard(rig) == []
    await rig.say(3, done(12))
    assert tasks_heard(rig) == [1, 11, 12]


async def test_what_is_posted_is_found_by_the_next_that_sends(rig: Rig) -> None:
    rig.start(1, 2, 3)
    rig.do(Tell(1, handing_on(1, 2, 3)))
    rig.post(1, done(1, forwarded=11))
    await rig.say(3, done(12))
    assert tasks_heard(rig) == []  # whether 2 handed it on is not known yet
    await rig.say(2, done(11, forwarded=12))
    assert tasks_heard(rig) == [1, 11, 12]


async def test_what_is_posted_is_found_before_anything_else_happens(rig: Rig) -> None:
    rig.start(1, 2)
    rig.do(Tell(1, handing_on(1, 2)))
    rig.post(1, done(1, forwarded=11))
    rig.engine.feed(Woke())
    assert rig.core.events[-2:] == [ContainerSaid(1, done(1, forwarded=11)), Woke()]


async def test_what_is_posted_is_found_though_nobody_speaks(rig: Rig) -> None:
    rig.start(1, 2)
    rig.do(Tell(1, handing_on(1, 2)))
    rig.post(1, done(1, forwarded=11))
    while not tasks_heard(rig):
        await asyncio.sleep(0.001)
    assert tasks_heard(rig) == [1]


async def test_a_chain_that_comes_to_rest_is_not_looked_at_for_ever(rig: Rig) -> None:
    rig.start(1, 2)
    rig.do(Tell(1, handing_on(1, 2)))
    while rig.engine._boards._timer is not None:
        await asyncio.sleep(0.001)
    rig.post(1, done(1, forwarded=11))  # an honest one would send it by now
    await rig.say(2, done(11))
    assert tasks_heard(rig) == [1, 11]


@pytest.mark.parametrize("handed", [True, False])
async def test_what_the_dead_have_posted_counts_if_it_was_handed_on(rig: Rig, handed: bool) -> None:
    rig.start(1, 2)
    rig.do(Tell(1, handing_on(1, 2)))
    rig.post(1, done(1, forwarded=11), handed=handed)
    rig.launcher.on_exit(1, "died", frozenset({1}))
    assert tasks_heard(rig) == ([1] if handed else [])
    assert rig.core.events[-1] == ContainerExited(1, "died", frozenset({1}))


@pytest.mark.parametrize(
    "rubbish", [b"\xc1 nonsense", wire.encode(wire.Unheld(())), wire.encode(done(1, forwarded=12))]
)
async def test_who_posts_rubbish_is_killed_and_nobody_else(rig: Rig, rubbish: bytes) -> None:
    rig.start(1, 2)
    rig.do(Tell(1, handing_on(1, 2)))
    rig.post(1, rubbish)
    await rig.say(2, done(11))
    assert list(rig.launcher.killed) == [1]
    rig.launcher.on_exit(1, "was killed", frozenset())
    assert rig.core.events[-1] == ContainerSaid(2, done(11))  # the core knows of no such task


async def test_words_about_a_task_that_was_never_handed_on_are_heard_when_that_is_known(rig: Rig) -> None:
    rig.start(1, 2, 3)
    rig.do(Tell(1, handing_on(1, 2, 3)))
    await rig.say(3, done(12))
    rig.launcher.on_exit(1, "died", frozenset())
    assert rig.core.events[-2:] == [ContainerExited(1, "died", frozenset()), ContainerSaid(3, done(12))]


async def test_words_about_a_task_whose_giver_died_before_it_could_tell_harm_nobody(rig: Rig) -> None:
    rig.start(1, 2, 3)
    foreign, own = await rig.give_arena(1), await rig.give_arena(2)
    rig.do(Tell(1, handing_on(1, 2, 3)))
    rig.launcher.on_exit(1, "died", frozenset({1}))
    told = wire.TaskDone(11, {"out": by_reference(foreign), "new": by_reference(own)}, 0, NO_TIMES, ((foreign, 0),), 12)
    await rig.say(2, told)
    await rig.say(3, wire.TaskFailed(12, wire.ErrorRecord(Code.INTERNAL, "E", "no"), NO_TIMES, ((foreign, 0),)))
    assert rig.launcher.killed == {}
    first, second = (event.message for event in rig.core.events[-2:] if isinstance(event, ContainerSaid))
    assert first == wire.TaskDone(11, {"new": by_reference(own)}, 0, NO_TIMES)
    assert (second.task, second.held) == (12, ())
    await rig.say(2, told)  # a second time it can't be that
    assert 2 in rig.launcher.killed


async def test_a_death_is_told_after_last_words_that_had_to_wait(rig: Rig) -> None:
    rig.start(1, 2)
    rig.do(Tell(1, handing_on(1, 2)))
    await rig.say(2, done(11))
    rig.launcher.on_exit(2, "died", frozenset())
    assert not any(isinstance(event, ContainerExited) for event in rig.core.events)
    await rig.say(1, done(1, forwarded=11))
    said = [
        ContainerSaid(1, done(1, forwarded=11)),
        ContainerSaid(2, done(11)),
        ContainerExited(2, "died", frozenset()),
    ]
    assert rig.core.events[-3:] == said


async def test_what_was_handed_over_counts_as_known_to_the_receiver(rig: Rig) -> None:
    rig.start(1, 2)
    arena = await rig.give_arena(1)
    value = by_reference(arena)
    rig.do(Tell(1, handing_on(1, 2)))
    rig.core.ledger.hold(value)
    await rig.say(1, done(1, forwarded=11, value=value))
    await rig.say(2, done(11, value=value))
    assert tasks_heard(rig)[-2:] == [1, 11]
    assert rig.launcher.killed == {}
    rig.hear(2)
    rig.do(commands.DropArena(arena))
    assert rig.hear(2) == [wire.DetachArena(arena)]


@pytest.mark.parametrize(
    "lie", [done(1, forwarded=12), wire.TaskDone(1, {}, 0, NO_TIMES, (), 11), done(7, forwarded=11)]
)
async def test_who_hands_on_what_it_can_not_have_is_killed(rig: Rig, lie: wire.TaskDone) -> None:
    rig.start(1, 2)
    rig.do(Tell(1, handing_on(1, 2)))
    await rig.say(1, lie)
    assert "handed on" in rig.launcher.killed[1]


# --- memory that is returned ----------------------------------------------------------------------------------------


async def test_slots_are_left_on_the_board_of_a_container_that_need_not_be_woken(rig: Rig) -> None:
    rig.start(1, 2)
    slots = ((1 << 16, 0), (1 << 16, 4096))
    rig.do(Tell(1, wire.ReleaseSlots(slots), at_leisure=True), Tell(2, wire.ReleaseSlots(((2 << 16, 0),))))
    assert rig.hear(1, CONTROL) == []
    assert rig.launcher.boards[1][1].take_returns() == list(slots)
    assert rig.hear(2, CONTROL) == [wire.ReleaseSlots(((2 << 16, 0),))]


async def test_slots_for_which_the_board_has_no_room_are_sent(rig: Rig) -> None:
    rig.start(1)
    slots = tuple((1 << 16, number * 4096) for number in range(MOST_RETURNS + 1))
    rig.do(Tell(1, wire.ReleaseSlots(slots), at_leisure=True))
    assert rig.hear(1, CONTROL) == [wire.ReleaseSlots(slots)]
    assert not rig.launcher.boards[1][1].has_returns
