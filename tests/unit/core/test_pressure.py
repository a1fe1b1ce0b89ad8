"""When a container that still sends gets its next task: the two formulas, and what the core makes of them."""

from __future__ import annotations

import pytest

from dataflower.core import commands, events
from dataflower.core.config import CoreConfig
from dataflower.core.pressure import FREE, Outflow, Pressure, hold, lacking
from dataflower.errors import Code, Failure
from dataflower.spec.workflow import Resources, Scaling
from dataflower.testing.story import Story, stage, workflow
from dataflower.wire import CancelTask, RunTask

MB = 1_000_000
SLOW = Resources(bandwidth=10 * MB)


def test_the_papers_formula_takes_what_one_task_handed_over_at_the_rate_that_is_promised() -> None:
    """SVD's first stage there: 17.6 MB at 10 MB/s after 13 ms."""
    found = hold(Pressure.PAPER, Outflow(17_600_000, 50 * MB, 2 * MB), SLOW, 0.013)
    assert found.seconds == pytest.approx(1.25 * 1.76 - 0.013)
    assert not found.shared
    assert hold(Pressure.PAPER, Outflow(1_000, 50 * MB, 2 * MB), SLOW, 0.013) == FREE
    entitled = hold(Pressure.PAPER, Outflow(50 << 20, 0, 0.0), Resources(cpu=2.0), 0.0)
    assert entitled.seconds == pytest.approx(0.625)


def test_ours_takes_what_is_on_its_way_and_frees_the_place_when_the_next_outputs_find_the_way_free() -> None:
    flow = Outflow(MB, 5 * MB, 8 * MB)
    assert hold(Pressure.MEASURED, flow, SLOW, 0.5).seconds == pytest.approx(5 / 8 - 0.5)
    assert hold(Pressure.MEASURED, flow, SLOW, 0.625) == FREE
    assert hold(Pressure.MEASURED, Outflow(0, 5 * MB, 90 * MB), SLOW, 0.0).seconds == pytest.approx(0.5)  # a burst
    assert hold(Pressure.MEASURED, Outflow(0, 5 * MB, 0.0), SLOW, 0.0).seconds == pytest.approx(0.5)  # not measured yet
    assert hold(Pressure.MEASURED, Outflow(0, 5 * MB, 0.0), Resources(), 0.0) == FREE  # nobody can say


def test_ours_knows_whether_another_container_would_send_any_faster() -> None:
    assert not hold(Pressure.MEASURED, Outflow(0, 5 * MB, 9 * MB), SLOW, 0.0).shared
    assert hold(Pressure.MEASURED, Outflow(0, 5 * MB, 2 * MB), SLOW, 0.0).shared  # the line is full of others' bytes
    assert hold(Pressure.MEASURED, Outflow(0, 5 * MB, 9 * MB), Resources(), 0.0).shared
    assert lacking(10, [], 0.1, shared=True) == 0
    assert lacking(10, [0.05, 0.3], 0.1, shared=False) == 9


def told(rule: Pressure, *, replicas: int = 1, resources: Resources = SLOW) -> Story:
    """Three calls of a stage whose outputs go far; the first function is over after .1 s and sends 1 MB."""
    far = stage("a", {"x": "inputs.x"}, resources=resources, scaling=Scaling(max_replicas=replicas))
    story = Story(workflow([far], {"y": "a.out"}), config=CoreConfig(pressure=rule))
    story.invoke("i", x=1)
    return story


def sending(story: Story, waiting: int, *, fresh: int = 0, over: bool = False, rate: float = 10 * MB) -> None:
    """What the container of the first task says it sends; `over`: that task's function is."""
    (task, *_) = story.told(RunTask)
    number = next(c.container for c in story.said if isinstance(c, commands.Tell) and c.message is task)
    ended = (task.task,) if over else ()
    story.tell(events.ContainerSending(number, fresh, waiting, rate, ended, 0.1 if over else 0.0))


@pytest.mark.parametrize("rule", list(Pressure))
def test_a_function_goes_on_while_its_last_outputs_travel(rule: Pressure) -> None:
    story = told(rule)
    story.invoke("j", x=2)
    assert len(story.told(RunTask)) == 1
    sending(story, 100_000, fresh=100_000, over=True)
    assert len(story.told(RunTask)) == 2
    assert story.core.statistics().tasks == 2
    story.done("a")  # the second: it has overtaken nothing that matters
    assert set(story.finished) == {"j"}


@pytest.mark.parametrize(("rule", "held_s"), [(Pressure.MEASURED, 0.3), (Pressure.PAPER, 0.4)])
def test_a_place_is_held_while_too_much_is_on_its_way(rule: Pressure, held_s: float) -> None:
    story = told(rule)
    story.invoke("j", x=2)
    sending(story, 4 * MB, fresh=4 * MB, over=True)
    assert len(story.told(RunTask)) == 1
    story.wait(held_s - 0.02)
    assert len(story.told(RunTask)) == 1
    story.wait(0.04)
    assert len(story.told(RunTask)) == 2
    assert story.core.statistics().timers == 0


def test_a_place_is_free_as_soon_as_all_has_arrived() -> None:
    story = told(Pressure.MEASURED)
    story.invoke("j", x=2)
    sending(story, 40 * MB, fresh=40 * MB, over=True)
    assert len(story.told(RunTask)) == 1
    sending(story, 0)
    assert len(story.told(RunTask)) == 2


def test_a_held_place_makes_the_stage_grow_only_where_that_helps() -> None:
    def containers(resources: Resources, rate: float, waiting: int, start_s: float = 0.0) -> int:
        story = told(Pressure.MEASURED, replicas=4, resources=resources)
        story.core._containers[1].pool.start_s = start_s  # type: ignore[attr-defined]
        sending(story, waiting, fresh=waiting, over=True, rate=rate)
        story.invoke("j", x=2)
        return len(story.containers_of("a"))

    assert containers(SLOW, 10 * MB, 40 * MB) == 2
    assert containers(SLOW, 2 * MB, 40 * MB) == 1, "the line is the bottleneck"
    assert containers(Resources(), 10 * MB, 40 * MB) == 1, "they share one line"
    assert containers(SLOW, 10 * MB, 4 * MB, start_s=0.5) == 1, "it is free again before another would be there"


def test_a_task_whose_outputs_travel_is_neither_late_nor_deaf() -> None:
    far = stage("a", {"x": "inputs.x"}, resources=SLOW, timeout_s=1.0)
    story = Story(workflow([far], {"y": "a.out"}), config=CoreConfig(cancel_grace_s=0.5))
    story.invoke(x=1)
    sending(story, 90 * MB, fresh=90 * MB, over=True)
    story.wait(5.0)
    assert not story.finished
    story.tell(events.CancelArrived("i", Failure(Code.CANCELLED, "Cancelled", "not wanted")))
    story.wait(5.0)
    assert not story.leaving
    assert len(story.told(CancelTask)) == 1, "its outputs need not come"
    story.done("a")
    assert story.core.statistics().tasks == 0


def test_a_container_that_dies_with_outputs_on_their_way_costs_an_attempt() -> None:
    story = told(Pressure.MEASURED)
    sending(story, 4 * MB, fresh=4 * MB, over=True)
    story.crash("a")
    failure = story.failure
    assert failure is not None
    assert failure.kind == "ContainerCrashed"
    story.release()
    story.wait(100.0)
    assert story.core.statistics().timers == 0
