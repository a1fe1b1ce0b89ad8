"""Stages with weights that share a device, seen from outside: who is let in, who waits, and who goes first."""

from __future__ import annotations

from typing import Any

import pytest

from dataflower import wire
from dataflower.core import commands, events
from dataflower.core.config import CoreConfig
from dataflower.core.program import compile_program
from dataflower.errors import Code
from dataflower.spec.workflow import Resources, Retry, Scaling, Slo, Workflow
from dataflower.testing.payloads import plain
from dataflower.testing.story import Story, stage, workflow


def chat(
    name: str, ttft_ms: float | None = 2000, concurrency: int = 4, backbone: str = "backbone", **fields: Any
) -> Workflow:
    """A language model stage; its stream is the answer."""
    scaling = fields.pop("scaling", Scaling(max_replicas=1, concurrency=concurrency))
    made = workflow(
        [stage(name, {"x": "inputs.x"}, ["deltas*"], model=backbone, scaling=scaling, **fields)],
        {"deltas": f"{name}.deltas"},
    )
    slo = None if ttft_ms is None else Slo(ttft_ms=ttft_ms)
    return Workflow(name, made.stages, made.inputs, made.outputs, slo)


class Device(Story):
    """Calls are told apart by their number; tasks by the call that they are of."""

    def __init__(self, *workflows: Workflow, batches: int = 1, size: int = 16, deaf: bool = False) -> None:
        config = CoreConfig(device_batches=batches, device_batch_size=size)
        super().__init__(config=config, deaf=deaf)
        self.numbers: dict[str, str] = {}
        for item in workflows:
            self.tell(events.WorkflowAdded(f"{item.name}@1", compile_program(item)))

    def call(self, name: str, invocation: str, deadline: float = 0.0) -> None:
        self.invoke(invocation, key=f"{name}@1", deadline=deadline, x=1)

    def given(self) -> list[str]:
        """Invocations whose tasks were given out, in order."""
        return [message.invocation for message in self.told(wire.RunTask)]

    def message(self, invocation: str) -> tuple[int, Any]:
        for command in self.said:
            match command:
                case commands.Tell(number, wire.RunTask() as told) if told.invocation == invocation:
                    found = number, told
        return found

    def speak(self, invocation: str) -> None:
        """It says its first token."""
        number, told = self.message(invocation)
        self.tell(events.ContainerSaid(number, wire.TokenSent(told.task, 0, {"deltas": plain("t")})))

    def finish(self, invocation: str, items: int = 1) -> None:
        number, told = self.message(invocation)
        self.tell(events.ContainerSaid(number, wire.TaskDone(told.task, {}, items, wire.Times())))

    def fail_one(self, invocation: str) -> None:
        number, told = self.message(invocation)
        error = wire.ErrorRecord(Code.INTERNAL, "ValueError", "on purpose")
        self.tell(events.ContainerSaid(number, wire.TaskFailed(told.task, error, wire.Times())))


def test_one_batch_at_a_time_until_its_first_token() -> None:
    told = Device(chat("a"), chat("b"))
    told.call("a", "a1")
    told.call("b", "b1")
    assert told.given() == ["a1"]
    told.speak("a1")  # it goes on, and the device is free for the next prompt
    assert told.given() == ["a1", "b1"]


def test_smallest_margin_goes_first() -> None:
    told = Device(chat("a"), chat("loose", 9000), chat("tight", 500))
    told.call("a", "a1")
    told.call("loose", "l1")
    told.call("tight", "t1")
    told.speak("a1")
    told.speak("t1")
    assert told.given() == ["a1", "t1", "l1"]


def test_requests_that_came_meanwhile_go_together() -> None:
    told = Device(chat("a"), chat("b"))
    told.call("a", "a1")
    for number in range(6):
        told.call("b", f"b{number}")
    told.speak("a1")
    assert told.given() == ["a1", "b0", "b1", "b2", "b3"]  # its container takes four
    for number in range(3):
        told.speak(f"b{number}")
    told.finish("b0")
    assert len(told.given()) == 5
    told.speak("b3")
    assert told.given()[5:] == ["b4"]  # one place was free


def test_batches_are_capped() -> None:
    told = Device(chat("a"), chat("b"), size=2)
    told.call("a", "a1")
    for number in range(3):
        told.call("b", f"b{number}")
    told.speak("a1")
    assert told.given() == ["a1", "b0", "b1"]


def test_as_many_batches_at_a_time_as_are_allowed() -> None:
    told = Device(chat("a"), chat("b"), chat("c"), batches=2)
    for name in "abc":
        told.call(name, f"{name}1")
    assert told.given() == ["a1", "b1"]
    (state,) = told.core.devices()
    assert (state.name, state.slots, state.running) == ("cpu", 2, 2)
    assert [sharer.waiting for sharer in state.sharers] == [0, 0, 1]


@pytest.mark.parametrize("end", ["finish", "fail", "cancel", "crash"])
def test_batch_without_a_word_gives_the_device_back_at_its_end(end: str) -> None:
    told = Device(chat("a", retry=Retry(max_attempts=1)), chat("b"))
    told.call("a", "a1")
    told.call("b", "b1")
    if end == "finish":
        told.finish("a1", items=0)
    elif end == "fail":
        told.fail_one("a1")
    elif end == "crash":
        told.exit(told.message("a1")[0])
    else:
        told.release("a1")
        assert told.given() == ["a1"]  # told to stop, and not yet gone
        told.fail_one("a1")
    assert told.given()[-1] == "b1"


def test_batch_that_never_speaks_does_not_keep_the_device_for_ever() -> None:
    told = Device(chat("a", 100), chat("b", 100))
    told.call("a", "a1")
    told.call("b", "b1")
    told.wait(0.9)
    assert told.given() == ["a1"]
    told.wait(0.2)  # ten objectives
    assert told.given() == ["a1", "b1"]
    told.speak("a1")
    (state,) = told.core.devices()
    assert state.running == 1


def test_cancelled_and_late_requests_never_get_a_turn() -> None:
    told = Device(chat("a"), chat("b"))
    told.call("a", "a1")
    told.call("b", "b1")
    told.call("b", "b2", deadline=told.clock.monotonic() + 0.5)
    told.call("b", "b3")
    told.release("b1")
    told.wait(0.6)
    told.speak("a1")
    assert told.given() == ["a1", "b3"]
    assert told.finished["b2"] is not None


def test_function_without_a_container_holds_up_nobody() -> None:
    told = Device(chat("a", 500), chat("b"), deaf=True)
    told.call("a", "a1")
    told.call("b", "b1")
    a, b = told.starting

    told.tell(events.ContainerSaid(b, wire.Hello(wire.VERSION, 1)))
    assert told.given() == ["b1"]
    told.tell(events.ContainerSaid(a, wire.Hello(wire.VERSION, 1)))
    assert told.given() == ["b1"]
    told.speak("b1")
    assert told.given() == ["b1", "a1"]


def test_failed_start_fails_those_who_wait() -> None:
    told = Device(chat("a", retry=Retry(max_attempts=1)), deaf=True)
    told.call("a", "a1")
    told.start_failed()
    assert told.finished["a1"] is not None
    assert told.core.statistics().queued == 0


def test_retried_task_waits_for_another_turn() -> None:
    told = Device(chat("a", retry=Retry(max_attempts=2, interval_s=0.0)), chat("b"))
    told.call("a", "a1")
    told.call("b", "b1")
    told.fail_one("a1")
    told.speak(told.given()[1])
    assert sorted(told.given()) == ["a1", "a1", "b1"]


def test_learned_latency_makes_windows() -> None:
    told = Device(chat("a"), chat("b"), chat("c", backbone="other"), size=4)
    for number in range(8):
        told.call("a", f"a{number}")
        told.clock.advance(0.3)
        told.speak(f"a{number}")
        told.finish(f"a{number}")
    (state,) = told.core.devices()
    learned, alike, unknown = state.sharers
    assert learned.latency is not None
    assert learned.latency.first_s == pytest.approx(0.3, abs=0.02)
    assert learned.window.size == 4
    assert learned.window.wait_s == pytest.approx(2 - 4 * 0.3, abs=0.1)
    assert alike.latency == learned.latency  # it is on the same backbone
    assert (unknown.latency, unknown.window.wait_s) == (None, 0.0)


def test_busy_device_lets_a_window_fill_before_it_takes_a_second_batch() -> None:
    told = Device(chat("a"), chat("b", backbone="other"), batches=2)
    for number in range(4):
        told.call("a", f"a{number}")
        told.clock.advance(0.3)
        told.speak(f"a{number}")
        told.finish(f"a{number}")
    told.call("b", "b1")
    told.call("a", "x1")  # its window is open, and the device is not idle
    assert told.given()[4:] == ["b1"]
    told.call("a", "x2")
    told.wait(1.5)
    assert told.given()[4:] == ["b1", "x1", "x2"]


def test_devices_are_apart_and_other_stages_are_free() -> None:
    plain = workflow([stage("p", {"x": "inputs.x"})], {"r": "p.out"})
    told = Device(
        chat("a"),
        chat("g", resources=Resources(gpu=1)),
        Workflow("p", plain.stages, plain.inputs, plain.outputs),
    )
    told.call("a", "a1")
    told.call("g", "g1")
    told.call("p", "p1")
    assert told.given() == ["a1", "g1", "p1"]
    assert [state.name for state in told.core.devices()] == ["cpu", "gpu 1"]


def test_without_the_setting_nobody_waits() -> None:
    told = Device(chat("a"), chat("b"), batches=0)
    told.call("a", "a1")
    told.call("b", "b1")
    assert told.given() == ["a1", "b1"]
    assert told.core.devices() == ()


def test_removed_workflow_leaves_nothing_behind() -> None:
    told = Device(chat("a"), chat("b"))
    told.call("a", "a1")
    told.call("b", "b1")
    told.tell(events.WorkflowRemoved("a@1"))
    told.tell(events.WorkflowRemoved("b@1"))
    told.speak("a1")
    told.finish("a1")
    told.speak("b1")
    told.finish("b1")
    for invocation in ("a1", "b1"):
        told.release(invocation)
    told.leave()
    assert told.core.devices() == ()
    assert told.core.statistics().containers == 0
