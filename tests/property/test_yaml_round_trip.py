"""A workflow survives the way to YAML and back, whatever is in it."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflower.errors import Problem, WorkflowInvalid
from dataflower.spec.dump import dump
from dataflower.spec.format import format_text
from dataflower.spec.function import DTYPES, Kind, Port, PortType
from dataflower.spec.load import complete, load
from dataflower.spec.workflow import Batch, Catch, Credit, Resources, Retry, Scaling, Slo, Stage, Workflow
from dataflower.testing.workflows import Features, scenarios

SLOW = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,6}", fullmatch=True)
numbers = st.floats(0.001, 1e9, allow_nan=False)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
types = st.one_of(
    st.sampled_from([kind for kind in Kind if kind is not Kind.TENSOR]).map(PortType),
    st.builds(
        PortType,
        st.just(Kind.TENSOR),
        st.sampled_from(["", *DTYPES]),
        st.none() | st.lists(st.integers(0, 2**40) | names, max_size=3).map(tuple),
    ),
)
SCALARS = {
    Kind.ANY: plain,
    Kind.JSON: plain,
    Kind.STRING: text,
    Kind.INT: st.integers(-(2**63), 2**63 - 1),
    Kind.FLOAT: st.floats(allow_nan=False),
    Kind.BOOL: st.booleans(),
}
typed = types.flatmap(lambda kind: st.tuples(st.just(kind), SCALARS.get(kind.kind, st.none())))
"""A type and a default that fits it."""
batches = (
    st.none()
    | st.builds(Batch, st.integers(1, 99), numbers, same_shape=st.booleans())
    | st.builds(Batch, cost=st.just("1 + 1"), max_cost=numbers)
)
sizes = st.none() | st.integers(1, 2**50)


@st.composite
def tuned(draw: st.DrawFn, stage: Stage) -> Stage:
    """The stage, run in some other way; there is only one for a switch."""
    if stage.is_switch:
        return stage
    most = draw(st.none() | st.integers(1, 9))
    ports = {port.name: port for port in stage.input_ports}
    extra = draw(st.dictionaries(names, typed, max_size=2))
    added = tuple(Port(n, t, False, True, d) for n, (t, d) in extra.items() if n not in ports)
    catch = (*stage.catch, Catch(output={})) if stage.catch else stage.catch
    return dataclasses.replace(
        stage,
        input_ports=(*stage.input_ports, *added),
        params=draw(st.dictionaries(text, plain, max_size=2)),
        retry=draw(st.none() | st.builds(Retry, st.just(("A", "*")), st.integers(1, 9), numbers, st.floats(1, 9))),
        catch=catch,
        timeout_s=draw(st.none() | numbers),
        resources=draw(st.builds(Resources, numbers, sizes, st.integers(0, 8) | st.just("h200"), sizes)),
        scaling=Scaling(draw(st.integers(0, most or 3)), most, draw(st.integers(1, 9)), draw(numbers), 7),
        credit=draw(st.builds(Credit, st.integers(1, 99), st.integers(1, 2**45))),
        batch=None if any(p.stream for p in (*stage.input_ports, *stage.outputs)) else draw(batches),
        preload=tuple(draw(st.lists(names, max_size=3, unique=True))),
    )


@st.composite
def workflows(draw: st.DrawFn) -> Workflow:
    """Valid graphs of every form, with everything else that a file may say."""
    base = draw(scenarios(Features(stages=4, faults=False))).workflow
    stages = {name: draw(tuned(stage)) for name, stage in base.stages.items()}
    extra = [
        Port(f"extra{index}", type_, False, True, default)
        for index, (type_, default) in enumerate(draw(st.lists(typed, max_size=2)))
    ]
    workflow = dataclasses.replace(
        base,
        stages=stages,
        inputs=(*base.inputs, *extra),
        slo=draw(st.none() | st.builds(Slo, numbers, st.none() | numbers, percentile=st.floats(1, 100))),
        deadline_s=draw(st.none() | numbers),
        description=draw(text),
        labels=draw(st.dictionaries(text, text, max_size=2)),
    )
    return complete(workflow)


def read(source: str) -> Workflow:
    return load(source, file="w.yaml", read=lambda _: None, find_source=lambda _: None)


def refusals(source: str) -> tuple[Problem, ...]:
    try:
        read(source)
    except WorkflowInvalid as error:
        return error.problems
    return ()


@SLOW
@given(workflows())
def test_load_undoes_dump(workflow: Workflow) -> None:
    source = dump(workflow)
    again = read(source)
    assert again == workflow
    assert list(again.stages) == list(workflow.stages)
    assert dump(again) == source


@SLOW
@given(workflows())
def test_tidying_changes_nothing(workflow: Workflow) -> None:
    tidied = format_text(dump(workflow))
    assert read(tidied) == workflow
    assert format_text(tidied) == tidied


@SLOW
@given(workflows(), st.data())
def test_a_damaged_file_is_refused_with_places_inside_it(workflow: Workflow, data: Any) -> None:
    source = dump(workflow)
    start = data.draw(st.integers(0, len(source) - 1))
    damaged = source[:start] + data.draw(text) + source[start + data.draw(st.integers(0, 20)) :]
    found = refusals(damaged)
    assert all(problem.file == "w.yaml" and problem.message for problem in found)
    assert all(1 <= problem.line <= len(damaged.splitlines()) + 1 and problem.column >= 1 for problem in found)
