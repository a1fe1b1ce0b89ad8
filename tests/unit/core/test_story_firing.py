"""Firing rule, scope and tag of docs/semantics.md, a story each."""

from dataflower.spec.workflow import Input, Merge
from dataflower.testing.story import Story, edge, stage, workflow


def test_a_stage_fires_when_all_its_inputs_are_there():
    story = Story(
        workflow(
            [stage("a", {"x": "inputs.x"}), stage("b", {"x": "inputs.x"}), stage("c", {"p": "a.out", "q": "b.out"})],
            {"r": "c.out"},
        )
    )
    story.invoke(x=1)
    story.done("a", out=10)
    assert not story.is_running("c")
    story.done("b", out=20)
    assert story.inputs_of("c") == {"p": 10, "q": 20}
    story.done("c", out=30)
    assert story.outputs == {"r": 30}
    assert story.failure is None


def test_a_stage_without_inputs_fires_once_when_the_invocation_arrives():
    story = Story(workflow([stage("a")], {"r": "a.out"}))
    story.invoke(x=1)
    assert story.ran == ["a"]


def test_each_runs_one_task_per_item_while_the_producer_still_runs():
    story = Story(
        workflow(
            [stage("a", {"x": "inputs.x"}, ["frames*"]), stage("b", {"f": "each a.frames", "x": "inputs.x"})],
            {"r": "gather b.out"},
        )
    )
    story.invoke(x=7)
    story.emit("a", frames=10)
    story.emit("a", frames=11)
    assert story.is_running("a")
    assert story.inputs_of("b", 0) == {"f": 10, "x": 7}
    assert story.inputs_of("b", 1) == {"f": 11, "x": 7}


def test_a_stream_reader_starts_with_the_first_item():
    story = Story(
        workflow([stage("a", {"x": "inputs.x"}, ["t*"]), stage("b", {"s*": "a.t"})], {"r": "b.out"}),
    )
    story.invoke(x=1)
    assert not story.is_running("b")
    story.emit("a", t=1)
    assert story.inputs_of("b") == {"s": [1]}


def test_a_stream_reader_starts_with_the_end_of_an_empty_stream():
    story = Story(workflow([stage("a", {"x": "inputs.x"}, ["t*"]), stage("b", {"s*": "a.t"})], {"r": "b.out"}))
    story.invoke(x=1)
    story.done("a")
    assert story.inputs_of("b") == {"s": []}


def test_two_stream_ports_of_a_stage_are_zipped_by_each_on_both():
    story = Story(
        workflow(
            [stage("a", {"x": "inputs.x"}, ["p*", "q*"]), stage("b", {"p": "each a.p", "q": "each a.q"})],
            {"r": "gather b.out"},
        )
    )
    story.invoke(x=1)
    story.emit("a", p=1, q=2)
    story.emit("a", p=3)  # q is absent in item 1, so b is skipped there
    story.emit("a", p=5, q=6)
    assert story.tags_of("b") == [(0,), (2,)]
    assert story.inputs_of("b", 2) == {"p": 5, "q": 6}


def test_gather_is_in_order_and_leaves_out_absent_items():
    story = Story(
        workflow(
            [
                stage("a", {"x": "inputs.x"}, ["t*"]),
                stage("b", {"t": "each a.t"}),
                stage("c", {"all": "gather b.out"}),
            ],
            {"r": "c.out"},
        ),
    )
    story.invoke(x=1)
    for item in (0, 1):
        story.emit("a", t=item)
    story.done("b", 1, out="one")
    story.emit("a", t=2)
    story.done("b", 2)
    story.done("b", 0, out="zero")
    assert not story.is_running("c")
    story.done("a")
    assert story.inputs_of("c") == {"all": ["zero", "one"]}


def test_zero_items_gather_to_the_empty_list():
    story = Story(
        workflow([stage("a", {"x": "inputs.x"}, ["t*"]), stage("c", {"all": "gather a.t"})], {"r": "c.out"}),
    )
    story.invoke(x=1)
    story.done("a")
    assert story.inputs_of("c") == {"all": []}


def test_keyed_runs_one_task_per_key_in_order_of_first_appearance():
    story = Story(
        workflow(
            [stage("a", {"x": "inputs.x"}, ["t*"]), stage("b", {"group": "keyed a.t"})],
            {"r": "gather b.out"},
        )
    )
    story.invoke(x=1)
    for key, value in (("p", 1), ("q", 2), ("p", 3)):
        story.emit("a", t={"key": key, "value": value})
    story.done("a")
    assert story.inputs_of("b", 0) == {"group": [1, 3]}
    assert story.inputs_of("b", 1) == {"group": [2]}


def test_fan_outs_nest():
    story = Story(
        workflow(
            [
                stage("a", {"x": "inputs.x"}, ["t*"]),
                stage("b", {"t": "each a.t"}, ["u*"]),
                stage("c", {"u": "each b.u", "t": "each a.t"}),
                stage("d", {"cs": "gather c.out"}),
            ],
            {"r": "gather d.out"},
        ),
    )
    story.invoke(x=1)
    story.emit("a", t=5)
    story.done("a")
    story.emit("b", 0, u=50)
    story.emit("b", 0, u=51)
    assert story.inputs_of("c", 0, 1) == {"u": 51, "t": 5}
    story.done("b", 0)
    story.done("c", 0, 1, out="y")
    story.done("c", 0, 0, out="x")
    assert story.inputs_of("d", 0) == {"cs": ["x", "y"]}
    story.done("d", 0, out="z")
    assert story.outputs == {"r": ["z"]}
    assert story.failure is None


def test_any_takes_the_first_to_arrive_and_cancels_the_loser_at_the_end():
    merged = Input("m", (edge("a.out"), edge("b.out")), Merge.ANY)
    story = Story(
        workflow(
            [stage("a", {"x": "inputs.x"}), stage("b", {"x": "inputs.x"}), stage("c", {"m": merged})], {"r": "c.out"}
        )
    )
    story.invoke(x=1)
    story.done("b", out="b")
    assert story.inputs_of("c") == {"m": "b"}
    story.done("c", out=1)
    assert story.failure is None
    assert story.is_running("a")


def test_first_n_is_in_order_of_arrival_and_all_in_order_of_edges():
    edges = (edge("a.out"), edge("b.out"), edge("c.out"))
    story = Story(
        workflow(
            [
                *(stage(name, {"x": "inputs.x"}) for name in "abc"),
                stage("first", {"m": Input("m", edges, Merge.FIRST, 2)}),
                stage("every", {"m": Input("m", edges, Merge.ALL)}),
            ],
            {"r": "first.out", "s": "every.out"},
        )
    )
    story.invoke(x=1)
    story.done("c", out="c")
    story.done("b")  # absent
    assert not story.is_running("first")
    story.done("a", out="a")
    assert story.inputs_of("first") == {"m": ["c", "a"]}
    assert story.inputs_of("every") == {"m": ["a", "c"]}


def test_merge_of_absent_tokens():
    edges = (edge("a.out"), edge("b.out"))
    story = Story(
        workflow(
            [
                *(stage(name, {"x": "inputs.x"}) for name in "ab"),
                stage("one", {"m": Input("m", edges, Merge.ANY)}),
                stage("every", {"m": Input("m", edges, Merge.ALL)}),
            ],
            {"r": "one.out", "s": "every.out"},
        )
    )
    story.invoke(x=1)
    story.done("a")
    story.done("b")
    assert story.ended == {"r": True}
    assert story.inputs_of("every") == {"m": []}


def test_keys_of_different_types_are_different_keys():
    story = Story(
        workflow([stage("a", {"x": "inputs.x"}, ["t*"]), stage("b", {"group": "keyed a.t"})], {"r": "gather b.out"})
    )
    story.invoke(x=1)
    for value, key in enumerate((1, True, "1", 1.0, 1)):
        story.emit("a", t={"key": key, "value": value})
    story.done("a")
    groups = []
    for tag in range(4):
        groups.append(story.inputs_of("b", tag)["group"])
        story.done("b", tag, out=0)
    assert groups == [[0, 4], [1], [2], [3]]
    assert story.failure is None
