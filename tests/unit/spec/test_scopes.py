"""Scopes, as docs/semantics.md tells them."""

from __future__ import annotations

import dataclasses

import pytest

from dataflower.spec.function import Port
from dataflower.spec.scopes import ScopeError, edge_scope, find_scopes, scopes_of
from dataflower.spec.workflow import (
    Case,
    CaseRef,
    Catch,
    Edge,
    Fanout,
    Input,
    Merge,
    Output,
    PortRef,
    Stage,
    Workflow,
)

EACH, GATHER, KEYED, ALL = Fanout.EACH, Fanout.GATHER, Fanout.KEYED, Fanout.ALL


def edge(source: str, fanout: Fanout = ALL) -> Edge:
    stage, _, port = source.partition(".")
    return Edge(PortRef(stage, port), fanout)


def stage(name: str, *, reads_streams: bool = False, **inputs: Edge) -> Stage:
    """With a stream port `items` and a value port `out`."""
    return Stage(
        name,
        function="m:f",
        inputs=tuple(Input(port, (one,)) for port, one in inputs.items()),
        input_ports=tuple(Port(port, stream=reads_streams) for port in inputs),
        outputs=(Port("items", stream=True), Port("out")),
    )


def flow(*stages: Stage, outputs: dict[str, Edge] | None = None) -> Workflow:
    return Workflow(
        "w",
        {one.name: one for one in stages},
        inputs=(Port("x"), Port("xs", stream=True)),
        outputs=tuple(Output(name, one) for name, one in (outputs or {}).items()),
    )


def message(workflow: Workflow) -> str:
    with pytest.raises(ScopeError) as caught:
        scopes_of(workflow)
    return caught.value.message


def test_fan_outs_nest_and_gather_takes_off_the_innermost() -> None:
    workflow = flow(
        stage("a", x=edge("inputs.x")),
        stage("b", x=edge("a.items", EACH)),
        stage("c", x=edge("b.items", EACH), y=edge("a.out")),
        stage("d", x=edge("c.out", GATHER), y=edge("b.out")),
        stage("e", x=edge("d.out", GATHER)),
        stage("lone"),
    )
    assert scopes_of(workflow) == {"a": (), "b": ("a",), "c": ("a", "b"), "d": ("a",), "e": (), "lone": ()}


def test_gather_of_a_stream_port_is_its_list() -> None:
    assert scopes_of(flow(stage("a"), stage("b", x=edge("a.items", GATHER)))) == {"a": (), "b": ()}


def test_two_stream_ports_of_a_stage_are_zipped() -> None:
    first = dataclasses.replace(stage("a"), outputs=(Port("p", stream=True), Port("q", stream=True)))
    assert scopes_of(flow(first, stage("b", p=edge("a.p", EACH), q=edge("a.q", EACH))))["b"] == ("a",)


def test_stream_inputs_of_the_workflow_fan_out() -> None:
    assert scopes_of(flow(stage("a", x=edge("inputs.xs", EACH))))["a"] == ("inputs",)


def test_keyed_makes_a_fan_out_of_the_consumer() -> None:
    workflow = flow(stage("a"), stage("k", x=edge("a.items", KEYED)), stage("z", x=edge("k.out", GATHER)))
    assert scopes_of(workflow) == {"a": (), "k": ("k/keyed",), "z": ()}
    assert edge_scope(workflow, {"a": ()}, edge("a.items", KEYED), "k") == ("k/keyed",)


def test_order_of_stages_in_the_file_does_not_matter() -> None:
    workflow = flow(stage("b", x=edge("a.items", EACH)), stage("a"))
    assert list(scopes_of(workflow)) == ["b", "a"]


def test_unrelated_fan_outs_do_not_mix() -> None:
    workflow = flow(stage("a"), stage("b"), stage("c", x=edge("a.items", EACH), y=edge("b.items", EACH)))
    assert "come from different fan-outs: a and b" in message(workflow)


def test_a_stream_is_not_broadcast() -> None:
    consumer = stage("c", reads_streams=True, s=edge("a.items"))
    consumer = dataclasses.replace(
        consumer,
        inputs=(*consumer.inputs, Input("y", (edge("a.items", EACH),))),
        input_ports=(*consumer.input_ports, Port("y")),
    )
    assert "stream input 's' is read once" in message(flow(stage("a"), consumer))


@pytest.mark.parametrize(
    ("consumer", "text"),
    [
        (stage("c", x=edge("a.out", EACH)), "each needs a stream, but a.out is a value port"),
        (stage("c", x=edge("a.out", GATHER)), "nothing to gather"),
        (stage("c", x=edge("a.none")), "a has no port 'none'"),
        (stage("c", x=edge("q.out")), "no stage 'q'"),
        (stage("c", x=edge("a.items", KEYED), y=edge("a.items", KEYED)), "only one may be"),
        (stage("c", x=edge("c.out")), "waits for itself"),
    ],
)
def test_errors(consumer: Stage, text: str) -> None:
    assert text in message(flow(stage("a"), consumer))


def test_merged_edges_share_a_scope() -> None:
    merging = dataclasses.replace(
        stage("m"), inputs=(Input("x", (edge("a.out"), edge("b.out")), Merge.ANY),), input_ports=(Port("x"),)
    )
    assert "merged edges differ in scope" in message(flow(stage("a"), stage("b", x=edge("a.items", EACH)), merging))


def test_when_runs_in_the_scope_of_its_switch_or_below() -> None:
    route = Stage("route", cases=(Case("yes", None),), inputs=(Input("x", (edge("a.items", EACH),)),))
    inside = dataclasses.replace(stage("b", x=edge("a.items", EACH)), when=(CaseRef("route", "yes"),))
    assert scopes_of(flow(stage("a"), route, inside))["b"] == ("a",)
    outside = dataclasses.replace(stage("b", x=edge("a.out")), when=(CaseRef("route", "yes"),))
    assert "`when: route.yes` chooses in a" in message(flow(stage("a"), route, outside))


def test_a_stand_in_runs_where_the_failure_was() -> None:
    failing = dataclasses.replace(stage("b", x=edge("a.items", EACH)), catch=(Catch(goto="s"),))
    assert scopes_of(flow(stage("a"), failing, stage("s", e=edge("b.error"))))["s"] == ("a",)
    assert "stands in for 'b' in a" in message(flow(stage("a"), failing, stage("s")))


def test_outputs_are_outside_all_fan_outs() -> None:
    inner = stage("b", x=edge("a.items", EACH))
    assert "inside the fan-out a" in message(flow(stage("a"), inner, outputs={"o": edge("b.out")}))
    assert scopes_of(flow(stage("a"), inner, outputs={"o": edge("b.out", GATHER), "s": edge("a.items")}))


def test_all_findings_come_at_once() -> None:
    workflow = flow(stage("a"), stage("b", x=edge("a.out", EACH)), stage("c", x=edge("a.out", GATHER)))
    assert [problem.stage for problem in find_scopes(workflow)[1]] == ["b", "c"]
