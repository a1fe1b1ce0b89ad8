"""Switch, `when` and absence of docs/semantics.md, a story each."""

from dataflower.errors import Code
from dataflower.spec.workflow import Case, CaseRef
from dataflower.testing.story import Story, stage, workflow

ROUTE = (Case("big", "x > 10"), Case("even", "x % 2 == 0"))


def test_the_first_true_case_is_taken_and_other_branches_are_absent():
    story = Story(
        workflow(
            [
                stage("route", {"x": "inputs.x"}, cases=ROUTE),
                stage("big", {"x": "inputs.x"}, when=(CaseRef("route", "big"),)),
                stage("even", {"x": "inputs.x"}, when=(CaseRef("route", "even"),)),
                stage("after", {"e": "even.out"}),
            ],
            {"b": "big.out", "a": "after.out"},
        )
    )
    story.invoke(x=12)
    assert story.ran == ["big"]
    assert story.ended == {"a": True}
    story.done("big", out=1)
    assert story.failure is None


def test_no_case_is_taken_without_a_default():
    story = Story(
        workflow(
            [
                stage("route", {"x": "inputs.x"}, cases=ROUTE),
                stage("big", {"x": "inputs.x"}, when=(CaseRef("route", "big"),)),
            ],
            {"b": "big.out"},
        )
    )
    story.invoke(x=1)
    assert story.ran == []
    assert story.ended == {"b": True}
    assert story.failure is None


def test_a_switch_chooses_tag_by_tag():
    story = Story(
        workflow(
            [
                stage("a", {"x": "inputs.x"}, ["t*"]),
                stage("route", {"x": "each a.t"}, cases=(*ROUTE, Case("rest", None))),
                stage("b", {"t": "each a.t"}, when=(CaseRef("route", "rest"),)),
            ],
            {"r": "gather b.out"},
        ),
    )
    story.invoke(x=1)
    for item in (11, 3, 2, 5):
        story.emit("a", t=item)
    assert story.tags_of("b") == [(1,), (3,)]


def test_an_expression_that_cannot_be_evaluated_fails_the_invocation():
    story = Story(
        workflow([stage("route", {"x": "inputs.x"}, cases=(Case("c", "1 / x == 1"),))], {}),
    )
    story.invoke(x=0)
    assert story.failure is not None
    assert (story.failure.kind, story.failure.code, story.failure.stage) == (
        "SwitchError",
        Code.INVALID_ARGUMENT,
        "route",
    )


def test_a_skipped_producer_makes_the_gather_over_its_fan_out_absent():
    story = Story(
        workflow(
            [
                stage("route", {"x": "inputs.x"}, cases=ROUTE),
                stage("a", {"x": "inputs.x"}, ["t*"], when=(CaseRef("route", "big"),)),
                stage("b", {"t": "each a.t"}),
                stage("c", {"bs": "gather b.out"}),
            ],
            {"r": "c.out"},
        ),
    )
    story.invoke(x=1)
    assert story.ran == []
    assert story.ended == {"r": True}


def test_a_sink_is_done_with_before_the_invocation_is_over():
    story = Story(workflow([stage("a", {"x": "inputs.x"}), stage("log", {"x": "inputs.x"})], {"r": "a.out"}))
    story.invoke(x=1)
    story.done("a", out=1)
    assert story.finished == {}
    story.done("log", out=None)
    assert story.failure is None
