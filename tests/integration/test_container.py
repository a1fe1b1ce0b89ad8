"""Real containers, forked from a real zygote, driven message by message over their sockets."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflower import wire
from dataflower.channel.link import Link
from dataflower.errors import Code, EndOfStream, PeerGone
from dataflower.testing.container_driver import STREAM, ContainerDriver, ZygoteDriver
from dataflower.wire import InputPort, OutputPort

HERE = str(Path(__file__).parent)


@pytest.fixture(scope="module")
def zygote() -> Iterator[ZygoteDriver]:
    with ZygoteDriver() as driver:
        yield driver


@pytest.fixture
def start(zygote: ZygoteDriver, tmp_path: Path) -> Iterator[Any]:
    started: list[ContainerDriver] = []

    def starter(name: str, *, fork: bool = False, **options: Any) -> ContainerDriver:
        log = tmp_path / f"{len(started)}.log"
        method = zygote.fork if fork else zygote.start
        options.setdefault("code_path", (HERE,))
        container = method(name if ":" in name else f"container_functions:{name}", log, **options)
        started.append(container)
        return container

    yield starter
    for container in started:
        container.close()
        if container in zygote.containers:
            zygote.containers.remove(container)
            zygote.exited(container)


def gone(zygote: ZygoteDriver, container: ContainerDriver) -> int:
    """Wait for the end of a container; gives its status."""
    status = zygote.exited(container)
    zygote.containers.remove(container)
    return status


def wait_for(container: ContainerDriver, text: str) -> None:
    """Until the container has logged this (the file is the only sign that user code is under way)."""
    while text not in container.log:
        os.sched_yield()


class TestForkedByUserCode:
    """A process that a function forks is no container: when its code comes back it ends, and nothing is done twice."""

    @pytest.mark.parametrize("how", ["return", "raise"])
    def test_the_child_of_a_function(self, start: Any, how: str) -> None:
        container = start("forks_and_returns")
        for x in range(3):
            assert container.result({"x": x, "how": how}) == x
        wait_for_ends(container, 3)
        assert container.result({"x": 7, "how": "raise"}) == 7

    def test_the_child_of_a_generator(self, start: Any) -> None:
        container = start("forks_and_yields", outputs=(OutputPort("out", stream=True),))
        container.run({"n": 3})
        assert [container.decode(container.next(wire.TokenSent).outputs["out"]) for _ in range(3)] == [0, 1, 2]
        container.next(wire.TaskDone)
        wait_for_ends(container, 1)

    def test_the_child_of_a_coroutine(self, start: Any) -> None:
        container = start("forks_and_awaits")
        assert [container.result({"x": x}) for x in range(2)] == [0, 1]
        wait_for_ends(container, 2)

    def test_the_child_of_a_setup(self, start: Any) -> None:
        container = start("ForksInSetup")
        wait_for_ends(container, 1)
        assert [container.result({"x": x}) for x in range(20)] == list(range(20))

    def test_a_child_that_leaves_by_itself_is_left_alone(self, start: Any) -> None:
        container = start("computes_in_a_child")
        assert [container.result({"x": x}) for x in range(3)] == [0, 2, 4]
        assert container.log == ""


def wait_for_ends(container: ContainerDriver, count: int) -> None:
    while container.log.count("forked by the function, came back from it and ends") < count:
        os.sched_yield()


class TestValues:
    def test_plain_function(self, start: Any) -> None:
        container = start("add")
        assert container.hello.version == wire.VERSION
        assert container.hello.pid == container.pid
        assert container.result({"a": 1, "b": 2}) == 3
        assert container.result({"a": 1}) == 11

    def test_times_are_in_order(self, start: Any) -> None:
        container = start("same")
        container.run({"x": 1})
        done = container.next(wire.TaskDone)
        times = done.times
        assert 0 < times.received <= times.fetched <= times.started <= times.first_output <= times.ended
        assert done.items == 0
        assert done.held == ()

    def test_several_outputs(self, start: Any) -> None:
        container = start("both", outputs=(OutputPort("twice"), OutputPort("half")))
        container.run({"x": 10})
        outputs = container.next(wire.TaskDone).outputs
        assert {name: container.decode(value) for name, value in outputs.items()} == {"twice": 20, "half": 5}

    def test_params_are_keywords_of_a_plain_function(self, start: Any) -> None:
        container = start("params_of", params={"factor": 3})
        assert container.result({"x": 5}) == 15
        assert container.result({"x": 5, "offset": 1}) == 16

    def test_gathered_list(self, start: Any) -> None:
        container = start("same")
        container.run(raw={"x": tuple(container.encode(i) for i in range(3))})
        assert container.decode(container.next(wire.TaskDone).outputs["out"]) == [0, 1, 2]

    def test_stateful_class(self, zygote: ZygoteDriver, start: Any) -> None:
        container = start("Counter", params={"start": 5, "label": "n"})
        assert [container.result({"step": 1}) for _ in range(3)] == ["n6", "n7", "n8"]
        container.close()
        assert gone(zygote, container) == 0
        assert container.log == "counter closed at 8\n"

    def test_trim_hook_is_run_and_answered(self, start: Any) -> None:
        container = start("Counter", params={"start": 5, "label": "n"})
        container.tell(wire.Trim())
        container.next(wire.Trimmed)
        assert container.log == "counter trimmed at 5\n"
        assert container.result({"step": -6}) == "n-1"
        container.tell(wire.Trim())
        container.next(wire.Trimmed)  # although the hook failed
        assert "ValueError: nothing to give back" in container.log
        assert container.result({"step": 1}) == "n0"

    def test_trim_without_a_hook_is_answered(self, start: Any) -> None:
        container = start("same")
        container.tell(wire.Trim())
        container.next(wire.Trimmed)

    def test_async_function_and_class(self, start: Any) -> None:
        assert start("slow_add").result({"a": 1, "b": 2}) == 3
        model = start("AsyncModel", params={"scale": 3})
        assert [model.result({"x": x}) for x in (1, 2)] == [3, 6]

    def test_context(self, start: Any) -> None:
        container = start("about", stage="describe")
        assert container.result(invocation="inv", tag=(1, 2), attempt=3, deadline_s=1e12) == {
            "invocation": "inv",
            "tag": [1, 2],
            "attempt": 3,
            "stage": "describe",
            "remaining": True,
            "cancelled": False,
        }

    def test_what_it_prints_and_logs_goes_to_the_log(self, start: Any) -> None:
        container = start("logs")
        container.run(invocation="inv-7")
        container.next(wire.TaskDone)
        assert sorted(container.log.splitlines()) == ["INFO inv-7 stage: hello from user code", "err", "out"]

    def test_four_tasks_at_a_time(self, start: Any) -> None:
        container = start("meets", concurrency=4)
        for i in range(4):
            container.run({"x": i})
        outputs = [container.next(wire.TaskDone).outputs["out"] for _ in range(4)]
        assert sorted(container.decode(value) for value in outputs) == [0, 1, 2, 3]


class TestTensors:
    def test_a_big_tensor_comes_through_the_arena(self, start: Any) -> None:
        container = start("ones")
        container.run({"n": 5_000_000})
        value = container.next(wire.TaskDone).outputs["out"]
        (ref,) = value.tensors
        assert (ref.arena >> 16, ref.nbytes, len(value.body) < 100) == (container.number, 5_000_000, True)
        assert int(container.decode(value).sum()) == 5_000_000
        container.tell(wire.ReleaseSlots(((ref.arena, ref.slot),)))

    def test_context_empty_is_in_the_arena_already(self, start: Any) -> None:
        container = start("empties")
        container.run({"n": 100_000})
        value = container.next(wire.TaskDone).outputs["out"]
        assert int(container.decode(value)[99_999]) == 7
        assert value.tensors[0].arena >> 16 == container.number

    def test_a_tensor_passed_on_keeps_its_slot(self, start: Any) -> None:
        container = start("same")
        sent = container.encode(np.arange(100_000))
        container.run(raw={"x": sent})
        done = container.next(wire.TaskDone)
        assert done.outputs["out"].tensors == sent.tensors
        assert done.held == ()

    def test_views_that_user_code_keeps_are_reported_until_gone(self, start: Any) -> None:
        container = start("keeps")
        first = container.encode(np.arange(100_000))
        slot = (first.tensors[0].arena, first.tensors[0].slot)
        container.run(raw={"x": first})
        assert container.next(wire.TaskDone).held == (slot,)
        container.run(raw={"x": first})
        assert container.next(wire.TaskDone).held == ()  # it is known as held, and counts once

    def test_unheld_comes_when_the_last_view_dies(self, start: Any) -> None:
        container = start("keep_or_drop")
        kept = container.encode(np.arange(100_000))
        slot = (kept.tensors[0].arena, kept.tensors[0].slot)
        container.run(raw={"x": kept})
        assert container.next(wire.TaskDone).held == (slot,)
        container.run({"x": None})
        said = [container.receive(), container.receive()]
        assert wire.Unheld((slot,)) in said
        assert any(isinstance(message, wire.TaskDone) and message.held == () for message in said)

    def test_a_second_attach_and_a_detach_do_no_harm(self, start: Any) -> None:
        container = start("same")
        sent = container.encode(np.arange(100_000))
        arena = sent.tensors[0].arena
        container.run(raw={"x": sent})
        assert container.next(wire.TaskDone).held == ()
        views_fd, nbytes = os.memfd_create("other"), 4096
        os.ftruncate(views_fd, nbytes)
        container.tell(wire.AttachArena(arena, nbytes), (views_fd,))
        os.close(views_fd)
        container.run(raw={"x": sent})
        assert container.next(wire.TaskDone).outputs["out"].tensors == sent.tensors
        container.tell(wire.DetachArena(arena))
        container.run(raw={"x": sent})  # still attached by the task socket
        assert container.next(wire.TaskDone).outputs["out"].tensors == sent.tensors
        container.inbox.send(wire.encode(wire.DetachArena(arena)))
        assert container.result({"x": 1}) == 1

    def test_full_arena_waits_for_a_release(self, start: Any) -> None:
        container = start("ones", arena_cap_bytes=8 << 20)
        refs = []
        for _ in range(4):
            container.run({"n": 5 << 20})
        for _ in range(4):
            value = container.next(wire.TaskDone, passing=wire.Starved).outputs["out"]
            refs.append(value.tensors[0])
            container.tell(wire.ReleaseSlots(((refs[-1].arena, refs[-1].slot),)))
        assert len(refs) == 4

    def test_larger_than_the_arena_is_an_error(self, start: Any) -> None:
        container = start("ones", arena_cap_bytes=1 << 20)
        container.run({"n": 5 << 20})
        error = container.next(wire.TaskFailed).error
        assert (error.code, error.kind) == (Code.RESOURCE_EXHAUSTED, "ResourceExhausted")


class TestStreams:
    def test_generator(self, start: Any) -> None:
        container = start("count", outputs=STREAM)
        container.run({"n": 3})
        items = [container.next(wire.TokenSent) for _ in range(3)]
        assert [(item.index, container.decode(item.outputs["out"])) for item in items] == [(0, 0), (1, 1), (2, 2)]
        done = container.next(wire.TaskDone)
        assert (done.items, done.outputs) == (3, {})
        assert 0 < done.times.started <= done.times.first_output <= done.times.ended

    def test_async_generator(self, start: Any) -> None:
        container = start("acount", outputs=STREAM)
        container.run({"n": 2})
        assert [container.decode(container.next(wire.TokenSent).outputs["out"]) for _ in range(2)] == [0, 1]
        assert container.next(wire.TaskDone).items == 2

    def test_generator_with_a_value(self, start: Any) -> None:
        container = start("summed", outputs=(OutputPort("items", stream=True), OutputPort("total")))
        container.run({"n": 3})
        assert [container.decode(container.next(wire.TokenSent).outputs["items"]) for _ in range(3)] == [0, 1, 2]
        assert container.decode(container.next(wire.TaskDone).outputs["total"]) == 3

    @pytest.mark.parametrize(("name", "inputs", "items"), [("listed", {"n": 3}, 3), ("nothing", {}, 0)])
    def test_a_list_is_sent_as_items(self, start: Any, name: str, inputs: dict[str, int], items: int) -> None:
        container = start(name, outputs=STREAM)
        container.run(inputs)
        assert [container.next(wire.TokenSent).index for _ in range(items)] == list(range(items))
        assert container.next(wire.TaskDone).items == items

    @pytest.mark.parametrize("name", ["count", "acount", "listed"])
    def test_it_waits_for_credit(self, start: Any, name: str) -> None:
        container = start(name, outputs=STREAM)
        task = container.run({"n": 5}, credit=(2, 1 << 30))
        assert [container.next(wire.TokenSent).index for _ in range(2)] == [0, 1]
        container.tell(wire.Grant(task, 3, 1 << 30))
        assert container.next(wire.TokenSent).index == 2
        container.tell(wire.Grant(task, 5, 1 << 30))
        assert [container.next(wire.TokenSent).index for _ in range(2)] == [3, 4]
        assert container.next(wire.TaskDone).items == 5

    def test_credit_in_bytes_lets_one_item_over(self, start: Any) -> None:
        container = start("frames_of", outputs=STREAM)
        task = container.run({"x": np.zeros(40_000, np.uint8), "n": 2}, credit=(100, 1))
        first = container.next(wire.TokenSent)
        assert first.outputs["out"].tensors[0].nbytes == 40_000
        container.tell(wire.Grant(task, 100, 50_000))
        assert container.next(wire.TokenSent).outputs["out"].tensors[0].nbytes == 30_000
        assert container.next(wire.TaskDone).items == 2

    def test_stream_input_is_read_while_it_is_produced(self, start: Any) -> None:
        container = start("relay", outputs=STREAM)
        task = container.run(streams={"numbers": ([1], False)})
        seen, taken = [], 0
        for i in (2, 3, None):
            taken, value = self.taken_and_item(container, task, taken)
            seen.append(value)
            container.tell(wire.FeedEnd(task, "numbers") if i is None else self.feed(container, task, i))
        assert seen == [1, 2, 3]
        assert container.next(wire.TaskDone).items == 3

    def test_async_stream_input(self, start: Any) -> None:
        container = start("arelay", outputs=STREAM)
        task = container.run(streams={"numbers": ([1], False)})
        taken, value = self.taken_and_item(container, task, 0)
        assert (taken, value) == (1, 10)
        container.tell(self.feed(container, task, 2))
        assert self.taken_and_item(container, task, taken) == (2, 20)
        container.tell(wire.FeedEnd(task, "numbers"))
        assert container.next(wire.TaskDone).items == 2

    def test_feeds_that_overtake_their_task_are_kept(self, start: Any) -> None:
        container = start("total")
        container.tell(wire.Feed(1, "numbers", (container.encode(5),)))
        container.tell(wire.FeedEnd(1, "numbers"))
        container.run(streams={"numbers": ([1, 2], False)})
        message = container.receive()
        while isinstance(message, wire.Taken):
            message = container.receive()
        assert container.decode(message.outputs["out"]) == 8

    def test_feeds_for_a_finished_task_are_dropped(self, start: Any) -> None:
        container = start("first_of")
        frame = np.full(100_000, 3, np.uint8)
        task = container.run(streams={"frames": ([frame], False)})
        container.next(wire.Taken)
        assert container.decode(container.next(wire.TaskDone).outputs["out"]) == 3
        container.tell(self.feed(container, task, frame))
        container.tell(wire.Grant(task, 1, 1))
        container.tell(wire.CancelTask(task))
        container.run(streams={"frames": ([frame], True)})
        container.next(wire.Taken)
        assert container.decode(container.next(wire.TaskDone).outputs["out"]) == 3

    def test_taken_names_the_items_still_held(self, start: Any) -> None:
        container = start("keep_all")
        frames = [np.full(20_000, i, np.uint8) for i in range(3)]
        values = [container.encode(frame) for frame in frames]
        slots = [(value.tensors[0].arena, value.tensors[0].slot) for value in values]
        task = container.run(streams={"frames": ([], False)})
        held: list[tuple[int, int]] = []
        for value in values:
            container.tell(wire.Feed(task, "frames", (value,)))
            taken = container.next(wire.Taken)
            held += taken.held
        assert held == slots[:2]
        container.tell(wire.FeedEnd(task, "frames"))
        done = container.next(wire.TaskDone)
        assert container.decode(done.outputs["out"]) == 3
        assert done.held == (slots[2],)

    @staticmethod
    def feed(container: ContainerDriver, task: int, item: Any) -> wire.Feed:
        return wire.Feed(task, "frames" if isinstance(item, np.ndarray) else "numbers", (container.encode(item),))

    @staticmethod
    def taken_and_item(container: ContainerDriver, task: int, before: int) -> tuple[int, Any]:
        taken = container.next(wire.Taken)
        assert (taken.task, taken.items) == (task, before + 1)
        return taken.items, container.decode(container.next(wire.TokenSent).outputs["out"])


class TestCancel:
    @pytest.mark.parametrize("name", ["spin", "spin_stubborn"])
    def test_busy_loop_in_pure_python(self, start: Any, name: str) -> None:
        container = start(name)
        task = container.run()
        wait_for(container, "spinning")
        container.tell(wire.CancelTask(task, "no longer wanted"))
        error = container.next(wire.TaskFailed).error
        assert (error.code, error.kind, error.message) == (Code.CANCELLED, "Cancelled", "no longer wanted")

    def test_while_waiting_for_a_stream(self, start: Any) -> None:
        container = start("total")
        task = container.run(streams={"numbers": ([1], False)})
        container.next(wire.Taken)
        container.tell(wire.CancelTask(task))
        assert container.next(wire.TaskFailed).error.code is Code.CANCELLED
        assert self.works(container)

    @pytest.mark.parametrize("name", ["count", "acount", "listed"])
    def test_while_waiting_for_credit(self, start: Any, name: str) -> None:
        container = start(name, outputs=STREAM)
        task = container.run({"n": 5}, credit=(1, 1 << 30))
        container.next(wire.TokenSent)
        container.tell(wire.CancelTask(task))
        failed = container.next(wire.TaskFailed)
        assert (failed.task, failed.error.code) == (task, Code.CANCELLED)
        container.run({"n": 0})
        assert container.next(wire.TaskDone).items == 0

    def test_while_waiting_for_room_in_the_arena(self, start: Any) -> None:
        container = start("ones", arena_cap_bytes=8 << 20)
        container.run({"n": 5 << 20})
        value = container.next(wire.TaskDone).outputs["out"]
        task = container.run({"n": 5 << 20})
        assert container.next(wire.Starved) == wire.Starved(task, 0)
        container.tell(wire.CancelTask(task))
        assert container.next(wire.TaskFailed).error.code is Code.CANCELLED
        container.tell(wire.ReleaseSlots(((value.tensors[0].arena, value.tensors[0].slot),)))
        container.run({"n": 5 << 20})  # comes on another socket than the release, perhaps before it
        assert container.next(wire.TaskDone, passing=wire.Starved).outputs["out"].tensors

    def test_async_function(self, start: Any) -> None:
        container = start("asleep")
        task = container.run()
        container.tell(wire.CancelTask(task))
        assert container.next(wire.TaskFailed).error.code is Code.CANCELLED

    def test_before_its_task_came(self, start: Any) -> None:
        container = start("same")
        container.tell(wire.CancelTask(1))
        container.tell(wire.Grant(2, 0, 0))  # in order on one socket, but the task comes on another
        container.run({"x": 1})
        first = container.receive()
        assert type(first) in (wire.TaskFailed, wire.TaskDone)
        assert container.result({"x": 2}) == 2

    def test_an_interruption_never_reaches_the_next_task(self, start: Any) -> None:
        container = start("brief")
        outcomes = set()
        for _ in range(300):
            task = container.run({"n": 200})
            container.tell(wire.CancelTask(task))
            outcomes.add(type(container.receive()))
            container.run({"n": 200})
            assert type(container.receive()) is wire.TaskDone
        assert outcomes <= {wire.TaskDone, wire.TaskFailed}

    def test_cancelled_streams_of_four_tasks_at_a_time(self, start: Any) -> None:
        container = start("ticks", outputs=STREAM, concurrency=4)
        for _ in range(40):
            tasks = [container.run({"n": 20}) for _ in range(8)]
            for task in tasks[::2]:
                container.tell(wire.CancelTask(task))
            ended = {}
            while len(ended) < len(tasks):
                message = container.receive()
                if isinstance(message, wire.TaskDone):
                    assert message.items == 20
                if not isinstance(message, wire.TokenSent):
                    ended[message.task] = type(message)
            assert all(ended[task] is wire.TaskDone for task in tasks[1::2])

    @staticmethod
    def works(container: ContainerDriver) -> bool:
        container.run(streams={"numbers": ([], True)})
        return bool(container.decode(container.next(wire.TaskDone).outputs["out"]) == 0)


class TestErrors:
    @pytest.mark.parametrize(
        ("function", "kind", "words"),
        [
            ("broken_functions:f", "ModuleNotFoundError", "a_library_that_is_not_there"),
            ("no_such_module_here:f", "ModuleNotFoundError", "no_such_module_here"),
            ("container_functions:nonesuch", "AttributeError", "nonesuch"),
            ("container_functions:HERE_IS_NO_COLON.x", "AttributeError", "HERE_IS_NO_COLON"),
            ("container_functions:KEPT", "FailedPrecondition", "can't be called"),
        ],
    )
    def test_it_can_not_be_imported(
        self, zygote: ZygoteDriver, start: Any, function: str, kind: str, words: str
    ) -> None:
        container = start(function, fork=True)
        error = container.next(wire.StartFailed).error
        assert (error.code, error.kind) == (Code.FAILED_PRECONDITION, kind)
        assert words in error.message
        assert "dataflower/container" not in error.traceback
        assert gone(zygote, container) == 3

    def test_setup_raises(self, zygote: ZygoteDriver, start: Any) -> None:
        container = start("NoSetup", fork=True, params={"path": "/nowhere"})
        error = container.next(wire.StartFailed).error
        assert (error.code, error.kind, error.message) == (
            Code.INTERNAL,
            "FileNotFoundError",
            "no weights at /nowhere",
        )
        assert "container_functions.py" in error.traceback
        assert gone(zygote, container) == 3

    def test_params_that_do_not_fit(self, start: Any) -> None:
        error = start("same", fork=True, params={"y": 1}).next(wire.StartFailed).error
        assert (error.code, "y" in error.message) == (Code.FAILED_PRECONDITION, True)

    @pytest.mark.parametrize(
        ("what", "kind"),
        [("value", "ValueError"), ("os", "OSError"), ("exit", "SystemExit"), ("interrupt", "KeyboardInterrupt")],
    )
    def test_user_code_raises(self, start: Any, what: str, kind: str) -> None:
        container = start("fails")
        for _ in range(2):
            container.run({"what": what})
            error = container.next(wire.TaskFailed).error
            assert (error.code, error.kind, error.message) == (Code.INTERNAL, kind, f"bad {what}")
            assert "in fails" in error.traceback
            assert "function_unit.py" not in error.traceback

    def test_sys_exit(self, start: Any) -> None:
        container = start("leaves")
        container.run()
        assert container.next(wire.TaskFailed).error.kind == "SystemExit"

    def test_a_generator_breaks_halfway(self, start: Any) -> None:
        container = start("halfway", outputs=STREAM)
        container.run({"n": 2})
        assert [container.next(wire.TokenSent).index for _ in range(2)] == [0, 1]
        assert container.next(wire.TaskFailed).error.message == "broke halfway"

    def test_wrong_arguments(self, start: Any) -> None:
        container = start("same")
        container.run({"y": 1})
        assert container.next(wire.TaskFailed).error.kind == "TypeError"

    def test_outputs_of_the_wrong_type(self, start: Any) -> None:
        container = start("same", outputs=(OutputPort("out", kind="int"),))
        container.run({"x": "text"})
        error = container.next(wire.TaskFailed).error
        assert (error.code, error.kind) == (Code.INTERNAL, "TypeMismatch")
        assert "out" in error.message
        assert "int" in error.message
        assert container.result({"x": 3}) == 3

    def test_named_sizes_agree_from_inputs_to_outputs(self, start: Any) -> None:
        container = start(
            "image",
            inputs=(InputPort("n", kind="int"),),
            outputs=(OutputPort("out", kind="tensor", dtype="FP32", shape=("N", "N", 3)),),
        )
        container.run({"n": 4})
        error = container.next(wire.TaskFailed).error
        assert error.kind == "TypeMismatch"
        assert "N" in error.message

    def test_inputs_of_the_wrong_type(self, start: Any) -> None:
        container = start("same", inputs=(InputPort("x", kind="int"),))
        container.run({"x": "text"})
        error = container.next(wire.TaskFailed).error
        assert (error.code, error.kind) == (Code.INVALID_ARGUMENT, "TypeMismatch")

    def test_an_object_without_a_form_on_the_wire(self, start: Any) -> None:
        container = start("unsendable")
        container.run()
        error = container.next(wire.TaskFailed).error
        assert (error.code, error.kind) == (Code.INTERNAL, "TypeMismatch")

    def test_a_deadline_that_has_passed(self, start: Any) -> None:
        container = start("same")
        container.run({"x": 1}, deadline_s=1e-3)
        assert container.next(wire.TaskFailed).error.code is Code.DEADLINE_EXCEEDED


class TestStop:
    @pytest.mark.parametrize("which", ["inbox", "control"])
    def test_idle_container_leaves_when_a_socket_closes(self, zygote: ZygoteDriver, start: Any, which: str) -> None:
        container = start("Counter")
        link: Link = getattr(container, which)
        link.close()
        assert gone(zygote, container) == 0
        assert "counter closed" in container.log

    def test_busy_container_leaves_when_the_sockets_close(self, zygote: ZygoteDriver, start: Any) -> None:
        container = start("sleeps")
        container.run()
        wait_for(container, "sleeping")
        container.close()
        assert gone(zygote, container) == 0

    def test_nonsense_ends_it_with_a_word_in_the_log(self, zygote: ZygoteDriver, start: Any) -> None:
        container = start("same")
        container.control.send(b"\x00")
        assert gone(zygote, container) == 70
        assert "Error" in container.log

    def test_nothing_of_one_container_is_open_in_another(self, zygote: ZygoteDriver, start: Any) -> None:
        first, second = start("same"), start("same")
        os.kill(first.pid, signal.SIGKILL)
        assert gone(zygote, first) == -signal.SIGKILL
        with pytest.raises((EndOfStream, PeerGone)):  # no copy of its ends lives on in the other
            first.tasks.receive()
        assert second.result({"x": 1}) == 1
        names = [os.readlink(f"/proc/{second.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{second.pid}/fd")]
        assert sum(name.startswith("socket:") for name in names) == 3
