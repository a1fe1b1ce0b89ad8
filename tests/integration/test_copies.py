"""Outputs that have to be copied are copied beside the function where nobody can tell, and at hand-over elsewhere."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dataflower import wire
from dataflower.channel.tensor import UNCOPIED_BYTES
from dataflower.config.sources import file_reader, source_finder
from dataflower.errors import Code, EndOfStream, PeerGone
from dataflower.host.runtime import Runtime
from dataflower.host.settings import HostConfig
from dataflower.spec.load import load
from dataflower.testing.container_driver import OUT, STREAM, ContainerDriver, ZygoteDriver
from dataflower.wire import OutputPort

HERE = str(Path(__file__).parent)
LARGE = UNCOPIED_BYTES
HUGE = 256 << 20

Start = Callable[..., ContainerDriver]


@contextmanager
def starting(folder: Path, environ: dict[str, str] | None = None) -> Iterator[Start]:
    with ZygoteDriver(environ=environ) as zygote:
        yield lambda name, **options: zygote.start(
            f"copies_functions:{name}", folder / "log", code_path=(HERE,), **options
        )


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with starting(tmp_path) as found:
        yield found


def is_full_of(array: Any, number: int, nbytes: int) -> bool:
    return array.nbytes == nbytes and bool((array == number).all())


def run(container: ContainerDriver, fill: int, nbytes: int = LARGE, *, wanted: bool = True) -> int:
    return container.run({"n": nbytes, "fill": fill}, wanted=wanted)


def release(container: ContainerDriver, *values: wire.Value) -> None:
    slots = tuple((ref.arena, ref.slot) for value in values for ref in value.tensors)
    container.tell(wire.ReleaseSlots(slots))


def test_the_place_is_given_up_before_the_outputs_are_there(start: Start) -> None:
    container = start("own")
    task = run(container, 5)
    assert container.next(wire.Computed).task == task
    done = container.next(wire.TaskDone)
    assert done.task == task
    assert is_full_of(container.decode(done.outputs["out"]), 5, LARGE)


def test_it_is_not_where_nobody_waits_or_the_output_is_small(start: Start) -> None:
    container = start("own")
    for nbytes, wanted in ((LARGE, False), (LARGE - 1, True), (10, True)):
        run(container, 7, nbytes, wanted=wanted)
        done = container.next(wire.TaskDone)
        assert is_full_of(container.decode(done.outputs["out"]), 7, nbytes)


def test_tasks_that_come_meanwhile_run_and_all_outputs_are_right(start: Start) -> None:
    container = start("own")
    tasks = {run(container, fill): fill for fill in range(12)}
    computed, done = [], {}
    while len(done) < len(tasks):
        message = container.receive()
        if type(message) is wire.Computed:
            assert set(computed) <= done.keys()  # of one at a time
            computed.append(message.task)
        else:
            done[message.task] = message.outputs["out"]
    assert computed
    for task, fill in tasks.items():
        assert is_full_of(container.decode(done[task]), fill, LARGE)


@pytest.mark.parametrize("name", ["kept_and_changed", "seen_weakly"])
def test_what_others_can_reach_is_copied_before_the_function_goes_on(start: Start, name: str) -> None:
    container = start(name)
    for fill in range(3):
        run(container, fill)
    values = [container.next(wire.TaskDone).outputs["out"] for _ in range(3)]
    for fill, value in enumerate(values):
        assert is_full_of(container.decode(value), fill, LARGE)


def test_several_outputs_of_one_task(start: Start) -> None:
    container = start("several", outputs=tuple(OutputPort(name) for name in "abc"))
    task = run(container, 3)
    assert container.next(wire.Computed).task == task
    outputs = container.next(wire.TaskDone).outputs
    assert is_full_of(container.decode(outputs["a"]), 3, LARGE)
    assert is_full_of(container.decode(outputs["b"]), 4, 2 * LARGE)
    assert container.decode(outputs["c"]) == 3


@pytest.mark.parametrize("name", ["fresh_items", "one_buffer"])
def test_items_come_whole_and_in_order(start: Start, name: str) -> None:
    container = start(name, outputs=STREAM)
    container.run({"n": LARGE, "count": 8})
    items = [container.next(wire.TokenSent) for _ in range(8)]
    assert container.next(wire.TaskDone).items == 8
    assert [item.index for item in items] == list(range(8))
    for i, item in enumerate(items):
        large = i % 3 or name == "one_buffer"
        assert is_full_of(container.decode(item.outputs["out"]), i, LARGE if large else 10)


def test_an_item_that_is_being_copied_comes_before_the_failure(start: Start) -> None:
    container = start("fails_after", outputs=STREAM)
    container.run({"n": HUGE, "count": 1})
    assert is_full_of(container.decode(container.next(wire.TokenSent).outputs["out"]), 0, HUGE)
    assert container.next(wire.TaskFailed).error.message == "that was all"


def test_cancelled_meanwhile_it_leaves_no_room_taken(start: Start) -> None:
    container = start("own", arena_cap_bytes=HUGE)
    ends = set()
    for fill in range(6):
        task = run(container, fill, HUGE)
        assert container.next(wire.Computed).task == task
        container.tell(wire.CancelTask(task, "cancelled"))
        message = container.receive()  # never that the next one finds no room
        ends.add(type(message))
        assert message.task == task
        if type(message) is wire.TaskDone:  # it was too late
            release(container, *message.outputs.values())
        else:
            assert message.error.code is Code.CANCELLED
    assert wire.TaskFailed in ends
    run(container, 9, HUGE, wanted=False)
    assert is_full_of(container.decode(container.next(wire.TaskDone).outputs["out"]), 9, HUGE)


def test_a_full_arena_makes_the_function_wait_as_ever(start: Start) -> None:
    container = start("own", arena_cap_bytes=2 * LARGE)
    for fill in range(3):
        run(container, fill)
    said: list[Any] = []
    while not {wire.Starved, wire.TaskDone} <= {type(message) for message in said}:
        said.append(container.receive())
    assert [message.task for message in said if type(message) is wire.Starved] == [3]
    done = {message.task: message.outputs["out"] for message in said if type(message) is wire.TaskDone}
    release(container, done.pop(min(done)))
    while 3 not in done or len(done) < 2:  # in any order: one copied beside may be overtaken
        message = container.receive()
        if type(message) is wire.TaskDone:
            done[message.task] = message.outputs["out"]
    assert all(is_full_of(container.decode(value), task - 1, LARGE) for task, value in done.items())


@pytest.mark.parametrize("point", ["mid_write", "in the middle of the copy"])
def test_killed_in_the_middle_it_leaves_nothing(tmp_path: Path, point: str) -> None:
    environ = {"DATAFLOWER_FAILPOINTS": f"container.{point}:kill"} if point == "mid_write" else {}
    with starting(tmp_path, environ) as start:
        container = start("own", outputs=OUT)
        task = run(container, 1, HUGE)
        assert container.next(wire.Computed).task == task
        if point != "mid_write":
            os.kill(container.pid, signal.SIGKILL)
        with pytest.raises((EndOfStream, PeerGone)):
            container.receive()
        assert container.board.begun() == {task}


WORKFLOW = """
apiVersion: dataflower/v1
kind: Workflow
metadata: {name: copies}
inputs: {n: {type: int}, fill: {type: int}, marker: {type: string}}
stages:
  make:
    function: copies_functions:dies_on_the_second
    inputs: {n: inputs.n, fill: inputs.fill, marker: inputs.marker}
    scaling: {min_replicas: 1, max_replicas: 1}
    retry: {max_attempts: 3}
  look: {function: "copies_functions:ends", inputs: {x: make.out}}
outputs: {y: look.out}
"""


async def test_who_dies_while_it_copies_leaves_nothing_and_is_tried_again(tmp_path: Path) -> None:
    settings = HostConfig(code_path=(HERE,), cpus=2, writable_paths=(str(tmp_path),))
    async with Runtime(settings) as host:
        await host.apply(
            load(WORKFLOW, file="copies.yaml", read=file_reader, find_source=source_finder([Path(HERE)])), WORKFLOW
        )
        inputs = {"n": HUGE // 4, "marker": str(tmp_path / "marker")}
        first = await host.invoke("copies", {**inputs, "fill": 9})
        others = [await host.invoke("copies", {**inputs, "fill": fill}) for fill in range(4)]
        await first.result()
        found = [(await other.result())["y"] for other in others]
        assert found == [[fill, fill, fill, HUGE // 4] for fill in range(4)]
        assert (tmp_path / "marker").exists()
        while host.statistics().core.slots or host.statistics().core.tasks:
            await asyncio.sleep(0.01)
