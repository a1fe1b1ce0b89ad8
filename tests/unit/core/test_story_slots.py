"""Who keeps which piece of shared memory, and until when."""

from dataflower import wire
from dataflower.core.commands import DropArena, Tell
from dataflower.core.events import ContainerSaid
from dataflower.spec.workflow import Retry
from dataflower.testing.behaviour import FakeTensor
from dataflower.testing.payloads import pack
from dataflower.testing.story import Story, stage, workflow
from dataflower.wire import TensorRef, Value

CHAIN = workflow([stage("a", {"x": "inputs.x"}), stage("b", {"x": "a.out"})], {"r": "b.out"})


def arena_of(container: int) -> int:
    return container << 16 | 1


def ref(container: int, slot: int, nbytes: int = 8) -> TensorRef:
    return TensorRef(arena_of(container), slot, slot, nbytes, "UINT8", (nbytes,))


def tensors(container: int, *slots: int) -> Value:
    """A value with a tensor in each of these slots."""
    return pack([FakeTensor(8, ref(container, slot)) for slot in slots], lambda tensor: tensor.ref)


def spilled(container: int, slot: int) -> Value:
    """A value whose body is too large for a message."""
    return Value(b"\x01", spilled=ref(container, slot))


def make_arena(story: Story, container: int) -> None:
    story.tell(ContainerSaid(container, wire.ArenaMade(arena_of(container), 1 << 20)))


def dropped(story: Story) -> list[int]:
    return [command.arena for command in story.said if isinstance(command, DropArena)]


def test_all_tensors_of_a_value_are_given_back_when_its_reader_is_done():
    story = Story(CHAIN)
    story.invoke(x=1)
    story.done("a", out=tensors(1, 0, 64))
    assert story.given_back == []
    story.done("b", out=5)
    assert sorted(story.given_back) == [(arena_of(1), 0), (arena_of(1), 64)]


def test_two_tensors_in_one_slot_are_given_back_once():
    story = Story(CHAIN)
    story.invoke(x=1)
    story.done("a", out=tensors(1, 64, 64))
    story.done("b", out=5)
    assert story.given_back == [(arena_of(1), 64)]


def test_a_spilled_value_keeps_its_slot_until_its_reader_is_done():
    story = Story(CHAIN)
    story.invoke(x=1)
    story.done("a", out=spilled(1, 128))
    assert story.given_back == []
    story.done("b", out=5)
    assert story.given_back == [(arena_of(1), 128)]


def test_a_tensor_that_is_handed_on_lives_until_the_last_reader_is_done():
    story = Story(CHAIN)
    story.invoke(x=1)
    story.done("a", out=tensors(1, 0, 64))
    story.done("b", out=tensors(1, 64))
    assert story.given_back == [(arena_of(1), 0)]
    story.take("r", 1)
    assert story.given_back == [(arena_of(1), 0), (arena_of(1), 64)]


def test_what_user_code_keeps_is_given_back_when_it_lets_go():
    story = Story(CHAIN)
    story.invoke(x=1)
    story.done("a", out=tensors(1, 0, 64))
    story.done("b", out=5, held=[(arena_of(1), 64)])
    assert story.given_back == [(arena_of(1), 0)]
    story.tell(ContainerSaid(2, wire.Unheld(((arena_of(1), 64),))))
    assert story.given_back == [(arena_of(1), 0), (arena_of(1), 64)]


def test_what_a_container_kept_is_given_back_when_it_dies():
    story = Story(CHAIN)
    story.invoke(x=1)
    story.done("a", out=tensors(1, 0))
    story.done("b", out=5, held=[(arena_of(1), 0)])
    assert story.given_back == []
    story.exit(2)
    assert story.given_back == [(arena_of(1), 0)]


def test_the_tensors_of_a_dead_container_live_until_they_are_read():
    story = Story(CHAIN)
    story.invoke(x=1)
    make_arena(story, 1)
    story.done("a", out=tensors(1, 0))
    story.exit(1)
    assert dropped(story) == []
    story.done("b", out=5)
    assert dropped(story) == [arena_of(1)]
    assert story.given_back == []


def test_an_arena_that_nobody_reads_is_dropped_with_its_container():
    story = Story(CHAIN)
    story.invoke(x=1)
    make_arena(story, 1)
    story.crash("a")
    assert dropped(story) == [arena_of(1)]


def test_inputs_are_kept_for_the_next_attempt():
    stages = [stage("a", {"x": "inputs.x"}), stage("b", {"x": "a.out"}, retry=Retry(interval_s=0.0))]
    story = Story(workflow(stages, {"r": "b.out"}))
    story.invoke(x=1)
    story.done("a", out=tensors(1, 0))
    story.crash("b")
    assert story.given_back == []
    story.done("b", out=5)
    assert story.given_back == [(arena_of(1), 0)]


def streaming(**fields) -> Story:
    stages = [stage("a", {"x": "inputs.x"}, ["t*"]), stage("b", {"s*": "a.t"}, **fields)]
    story = Story(workflow(stages, {"r": "b.out"}))
    story.invoke(x=1)
    for item in range(3):
        story.emit("a", t=tensors(1, 64 * item))
    return story


def test_a_reader_keeps_only_the_newest_item():
    story = streaming()
    story.taken("b", name="s", items=1)
    assert story.given_back == []
    story.taken("b", name="s", items=3, held=[(arena_of(1), 0)])
    assert story.given_back == [(arena_of(1), 64)]
    story.done("b", out=1)
    assert story.given_back == [(arena_of(1), 64), (arena_of(1), 128)]


def test_a_reader_that_may_be_tried_again_keeps_all_items():
    story = streaming(retry=Retry(interval_s=0.0))
    story.taken("b", name="s", items=3)
    assert story.given_back == []
    story.crash("b")
    assert len(story.inputs_of("b")["s"]) == 3
    story.done("b", out=1)
    assert len(story.given_back) == 3


def test_a_result_is_kept_until_the_caller_has_it_or_leaves():
    story = Story(workflow([stage("a", {"x": "inputs.x"}, ["t*"])], {"r": "a.t"}))
    story.invoke(x=1)
    for item in range(3):
        story.emit("a", t=tensors(1, 64 * item))
    story.done("a")
    story.take("r", 1)
    assert story.given_back == [(arena_of(1), 0)]
    story.release()
    assert len(story.given_back) == 3


def leisure(story: Story) -> list[bool]:
    """Of each message that gave slots back, whether its container may come upon it by and by."""
    return [c.at_leisure for c in story.said if isinstance(c, Tell) and isinstance(c.message, wire.ReleaseSlots)]


def test_a_container_without_a_task_need_not_be_woken_for_what_it_gets_back():
    story = Story(CHAIN)
    story.invoke(x=1)
    story.done("a", out=tensors(1, 0))
    story.done("b", out=5)
    assert leisure(story) == [True]


def test_a_container_with_a_task_is_told_at_once_what_it_gets_back():
    story = Story(CHAIN)
    story.invoke(x=1)
    story.done("a", out=tensors(1, 0))
    story.invoke(x=1, invocation="j")
    story.done("b", out=5)
    assert leisure(story) == [False]
