"""Full memory that nobody can empty any more ends in an error; memory that somebody may still empty does not."""

from dataflower import wire
from dataflower.core.events import ContainerSaid
from dataflower.core.starvation import PATIENCE_S
from dataflower.errors import Code
from dataflower.spec.workflow import Workflow
from dataflower.testing.story import Story, stage, workflow


def gathering() -> Workflow:
    """A stream that is gathered whole."""
    return workflow([stage("a", {"x": "inputs.x"}, ["t*"]), stage("b", {"ts": "gather a.t"})], {"r": "b.out"})


def starve(story: Story, stage_name: str, *tag: int, released: int = 0) -> None:
    """The task says that it waits for room."""
    container, task = story.running[stage_name, tag]
    story.tell(ContainerSaid(container, wire.Starved(task.task, released)))


def test_a_gather_that_does_not_fit_fails_at_once():
    story = Story(gathering())
    story.invoke(x=1)
    story.emit("a", t=0)
    starve(story, "a")
    assert story.failure.kind == "MemoryFull"
    assert story.failure.code is Code.RESOURCE_EXHAUSTED
    assert story.failure.stage == "a"


def test_room_that_is_on_its_way_counts():
    story = Story(gathering())
    story.invoke(x=1)
    starve(story, "a", released=-1)  # it found no room before the last slot came back
    assert not story.finished


def test_a_task_that_computes_may_make_room():
    story = Story(
        workflow(
            [stage("a", {"x": "inputs.x"}, ["t*"]), stage("b", {"t": "each a.t"})],
            {"r": "gather b.out"},
        )
    )
    story.invoke(x=1)
    story.emit("a", t=0)
    starve(story, "a")
    assert not story.finished


def test_a_reader_that_may_be_computing_is_given_time():
    story = Story(workflow([stage("a", {"x": "inputs.x"}, ["t*"]), stage("b", {"s*": "a.t"})], {"r": "b.out"}))
    story.invoke(x=1)
    story.emit("a", t=0)
    story.taken("b", name="s", items=1)
    starve(story, "a")
    assert not story.finished
    story.wait(PATIENCE_S + 1)
    assert story.failure.kind == "MemoryFull"
