"""Back-pressure of docs/semantics.md, a story each."""

from dataflower import wire
from dataflower.core.commands import TakeInput
from dataflower.core.events import InputArrived, OutputTaken
from dataflower.spec.workflow import Credit, Scaling
from dataflower.testing.payloads import plain
from dataflower.testing.story import Story, stage, workflow


def granted(story: Story) -> int:
    """Items that the task of `a` may have emitted in all."""
    task = story.running["a", ()][1]
    return max([task.credit_items, *(g.items for g in story.told(wire.Grant) if g.task == task.task)])


def test_a_producer_gets_credit_as_its_items_are_taken():
    story = Story(
        workflow(
            [stage("a", {"x": "inputs.x"}, ["t*"], credit=Credit(items=2)), stage("b", {"s*": "a.t"})],
            {"r": "b.out"},
        )
    )
    story.invoke(x=1)
    assert granted(story) == 2
    story.emit("a", t=0)
    story.emit("a", t=1)
    assert granted(story) == 2
    story.taken("b", name="s", items=1)
    assert granted(story) == 3


def test_queued_tasks_count_against_their_producer():
    story = Story(
        workflow(
            [
                stage("a", {"x": "inputs.x"}, ["t*"], credit=Credit(items=2)),
                stage("b", {"t": "each a.t"}, scaling=Scaling(max_replicas=1)),
            ],
            {"r": "gather b.out"},
        )
    )
    story.invoke(x=1)
    story.emit("a", t=0)
    story.emit("a", t=1)
    assert granted(story) == 2
    story.done("b", 0, out=0)
    story.tell(OutputTaken("i", "r", 1))
    assert granted(story) >= 3


def test_items_that_wait_for_partners_do_not_count():
    story = Story(
        workflow(
            [
                stage("a", {"x": "inputs.x"}, ["t*"], credit=Credit(items=2)),
                stage("slow", {"x": "inputs.x"}),
                stage("b", {"t": "each a.t", "s": "slow.out"}),
            ],
            {"r": "gather b.out"},
        )
    )
    story.invoke(x=1)
    for item in range(5):
        story.emit("a", t=item)
    assert granted(story) >= 6


def test_a_gathered_list_can_be_longer_than_the_credit():
    story = Story(
        workflow(
            [stage("a", {"x": "inputs.x"}, ["t*"], credit=Credit(items=2)), stage("b", {"ts": "gather a.t"})],
            {"r": "b.out"},
        )
    )
    story.invoke(x=1)
    for item in range(5):
        story.emit("a", t=item)
    assert granted(story) >= 6


def test_a_slow_caller_slows_the_producer():
    story = Story(workflow([stage("a", {"x": "inputs.x"}, ["t*"], credit=Credit(items=2))], {"r": "a.t"}))
    story.invoke(x=1)
    story.emit("a", t=0)
    story.emit("a", t=1)
    assert granted(story) == 2
    story.tell(OutputTaken("i", "r", 2))
    assert granted(story) == 4


def test_a_caller_that_streams_is_slowed_too():
    story = Story(workflow([stage("b", {"s*": "inputs.s"})], {"r": "b.out"}, inputs=["s*"]))
    story.invoke(streams=["s"])
    (allowed,) = [c.items for c in story.said if isinstance(c, TakeInput)]
    for item in range(allowed):
        story.tell(InputArrived("i", "s", plain(item)))
    assert [c.items for c in story.said if isinstance(c, TakeInput)] == [allowed]
    story.taken("b", name="s", items=3)
    assert max(c.items for c in story.said if isinstance(c, TakeInput)) == allowed + 3
