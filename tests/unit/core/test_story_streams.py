"""Streams of callers, ordered gathers and deep nesting, a story each."""

from dataflower.core.commands import TakeInput
from dataflower.spec.workflow import Credit, Scaling
from dataflower.testing.story import Story, stage, workflow

# --- streams that the caller sends ---


def test_items_of_a_caller_become_tasks_as_they_come():
    story = Story(workflow([stage("b", {"s": "each inputs.s"})], {"r": "gather b.out"}, inputs=["s*"]))
    story.invoke(streams=["s"])
    story.feed("s", 10)
    assert story.inputs_of("b", 0) == {"s": 10}
    story.done("b", 0, out="x")
    story.end("s")
    assert story.outputs == {"r": ["x"]}
    assert story.failure is None


def test_two_streams_of_a_caller_are_streams_apart():
    stages = [stage("b", {"s*": "inputs.s"}), stage("c", {"t*": "inputs.t"})]
    story = Story(workflow(stages, {"b": "b.out", "c": "c.out"}, inputs=["s*", "t*"]))
    story.invoke(streams=["s", "t"])
    story.feed("s", 1, 2)
    story.end("s")
    story.end("s")  # a repetition means nothing
    story.feed("s", 3)  # too late
    assert story.is_running("b")
    assert not story.is_running("c")
    story.end("t")
    assert story.inputs_of("c") == {"t": []}
    story.done("b", out=1)
    story.done("c", out=1)
    assert story.failure is None


def test_a_stream_that_the_caller_does_not_open_is_empty():
    story = Story(workflow([stage("b", {"all": "gather inputs.s"})], {"r": "b.out"}, inputs=["s*"]))
    story.invoke()
    assert story.inputs_of("b") == {"all": []}


def test_a_caller_is_granted_what_the_slowest_port_has_taken():
    story = Story(workflow([stage("b", {"s*": "inputs.s"})], {"r": "b.out"}, inputs=["s*"]))
    story.invoke(streams=["s"])
    story.feed("s", *range(16))
    story.taken("b", name="s", items=16)
    story.feed("s", *range(16))
    story.taken("b", name="s", items=32)
    granted = [c.items for c in story.said if isinstance(c, TakeInput)]
    assert granted == sorted(granted)
    assert granted[-1] == 48


# --- ordered gathers ---


def ordered(credit: int) -> Story:
    """a fans out to b, whose results c reads in order as a stream."""
    stages = [
        stage("a", {"x": "inputs.x"}, ["t*"], credit=Credit(items=credit)),
        stage("b", {"t": "each a.t"}, scaling=Scaling(max_replicas=4)),
        stage("c", {"s*": "gather b.out"}),
    ]
    story = Story(workflow(stages, {"r": "c.out"}))
    story.invoke(x=1)
    return story


def test_an_ordered_gather_waits_for_the_first_before_it_hands_on_the_second():
    story = ordered(4)
    for item in range(3):
        story.emit("a", t=item)
    story.done("b", 1, out="one")
    assert not story.is_running("c")
    story.done("b", 0, out="zero")
    assert story.inputs_of("c") == {"s": ["zero", "one"]}


def test_a_slow_reader_of_an_ordered_gather_holds_up_the_source():
    story = ordered(2)
    for item in range(2):
        story.emit("a", t=item)
    for item in range(2):
        story.done("b", item, out=item)
    assert story.granted("a") == 2  # b is done with them, c is not
    story.taken("c", name="s", items=1)
    assert story.granted("a") == 3
    story.emit("a", t=2)
    assert story.granted("a") == 3
    story.taken("c", name="s", items=2)
    assert story.granted("a") == 4


def test_absent_items_of_an_ordered_gather_are_left_out_and_hold_up_nobody():
    story = ordered(2)
    story.emit("a", t=0)
    story.emit("a", t=1)
    story.done("b", 0)
    story.done("b", 1, out="one")
    assert story.inputs_of("c") == {"s": ["one"]}
    assert story.granted("a") == 3
    story.done("a")
    story.taken("c", name="s", items=1)
    story.done("c", out=1)
    assert story.failure is None


def test_an_ordered_gather_ends_although_its_last_items_are_absent():
    story = ordered(4)
    story.emit("a", t=0)
    story.done("a")
    story.done("b", 0)
    assert story.inputs_of("c") == {"s": []}


# --- bytes ---


def test_large_items_use_up_the_credit_in_bytes():
    producer = stage("a", {"x": "inputs.x"}, ["t*"], credit=Credit(items=100, bytes=1000))
    story = Story(workflow([producer, stage("b", {"s*": "a.t"})], {"r": "b.out"}))
    story.invoke(x=1)
    assert story.running["a", ()][1].credit_bytes == 1000
    for _ in range(2):
        story.emit("a", t="x" * 600)
    assert story.granted_bytes("a") == 1000
    story.taken("b", name="s", items=1)
    first = story.granted_bytes("a")
    assert 1600 <= first <= 1610  # the first item is settled, with the bytes around it
    story.taken("b", name="s", items=2)
    assert story.granted_bytes("a") == first + (first - 1000)


# --- deep nesting ---


def nested() -> Story:
    """Three fan-outs; the innermost stage is told something from every level."""
    stages = [
        stage("a", {"x": "inputs.x"}, ["t*"]),
        stage("b", {"t": "each a.t"}, ["u*"]),
        stage("c", {"u": "each b.u"}, ["v*"]),
        stage("top", {"x": "inputs.x"}),
        stage("one", {"t": "each a.t"}),
        stage("two", {"u": "each b.u"}),
        stage("d", {"v": "each c.v", "top": "top.out", "one": "one.out", "two": "two.out"}),
        stage("e", {"ds": "gather d.out"}),
        stage("f", {"es": "gather e.out", "one": "one.out"}),
        stage("g", {"fs": "gather f.out"}),
    ]
    story = Story(workflow(stages, {"r": "g.out"}))
    story.invoke(x=1)
    return story


def test_a_task_hears_from_every_level_above_it():
    story = nested()
    story.emit("a", t=0)
    story.emit("b", 0, u=0)
    story.emit("c", 0, 0, v="early")
    story.done("two", 0, 0, out="two")
    story.done("one", 0, out="one")
    assert not story.is_running("d", 0, 0, 0)
    story.done("top", out="top")
    assert story.inputs_of("d", 0, 0, 0) == {"v": "early", "top": "top", "one": "one", "two": "two"}
    story.emit("c", 0, 0, v="late")
    story.done("d", 0, 0, 0, out="d0")
    assert story.inputs_of("d", 0, 0, 1) == {"v": "late", "top": "top", "one": "one", "two": "two"}
    story.done("d", 0, 0, 1, out="d1")
    story.done("c", 0, 0)
    assert story.inputs_of("e", 0, 0) == {"ds": ["d0", "d1"]}
    story.done("e", 0, 0, out="e")
    story.done("b", 0)
    assert story.inputs_of("f", 0) == {"es": ["e"], "one": "one"}
    story.done("f", 0, out="f")
    story.done("a")
    assert story.inputs_of("g") == {"fs": ["f"]}
    story.done("g", out="g")
    assert story.failure is None


def test_absence_from_a_level_above_skips_all_below():
    story = nested()
    story.done("top", out="top")
    story.emit("a", t=0)
    story.emit("b", 0, u=0)
    story.done("two", 0, 0, out="two")
    for item in range(2):
        story.emit("c", 0, 0, v=item)
    story.done("one", 0)  # absent
    assert story.tags_of("d") == []
    story.done("c", 0, 0)
    story.done("b", 0)
    story.done("a")
    assert story.tags_of("f") == []
    assert story.inputs_of("e", 0, 0) == {"ds": []}
    story.done("e", 0, 0, out="e")
    assert story.inputs_of("g") == {"fs": []}
    story.done("g", out="g")
    assert story.failure is None


def test_nothing_below_zero_items():
    story = nested()
    story.emit("a", t=0)
    story.emit("a", t=1)
    story.done("a")
    for tag in range(2):
        story.done("b", tag)
        story.done("one", tag, out=tag)
    for tag in range(2):
        assert story.inputs_of("f", tag) == {"es": [], "one": tag}
        story.done("f", tag, out=tag)
    assert story.inputs_of("g") == {"fs": [0, 1]}
    story.done("g", out="g")
    story.done("top", out="top")
    assert story.failure is None
