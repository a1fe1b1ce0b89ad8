"""Batches change no result: fan-outs of many tasks, several invocations, crashes, failures and cancellations."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import event, given
from hypothesis import strategies as st
from scripts_for_tests import CANCELLED, SEEDS, check_legal, number_of, numbered, play

from dataflower.core.events import PlanChanged, WorkflowAdded
from dataflower.core.host import CoreConfig, HostCore
from dataflower.core.plan import DispatchPlan, GroupPlan, StageDispatch
from dataflower.core.program import compile_program
from dataflower.spec.workflow import Batch, Catch, Credit, Retry, Scaling, Workflow
from dataflower.testing.behaviour import Behaviour, Fault, Shape
from dataflower.testing.reference import outcomes
from dataflower.testing.scripted import Script
from dataflower.testing.story import stage, workflow

BATCHES = st.builds(
    Batch,
    st.integers(1, 5),
    st.sampled_from((0.0, 0.0, 1.0, 50.0)),
    st.just("1 + 1"),
    st.sampled_from((3.0, 6.0, 100.0)),
    st.booleans(),
)


def fanned(batch: Batch, second: Batch | None, retry: Retry | None, catch: tuple[Catch, ...]) -> Workflow:
    """A producer of items, two stages that take them in batches one behind the other, and a gather."""
    scaling = Scaling(max_replicas=2)
    return workflow(
        [
            stage("a", {"x": "inputs.x"}, ["t*"], credit=Credit(items=100)),
            stage("b", {"t": "each a.t"}, batch=batch, retry=retry, catch=catch, scaling=scaling),
            stage("c", {"t": "b.out"}, batch=second, scaling=scaling),
            stage("d", {"ts": "gather c.out"}),
        ],
        {"d": "d.out", "b": "gather b.out"},
    )


def behaviours(faults: dict[int, Fault] | None = None) -> dict[str, Behaviour]:
    return {
        "a": Behaviour({"t": Shape.TENSOR}, counts=(9, 6)),
        "b": Behaviour({"out": Shape.FORWARD}, faults=faults or {}),
        "c": Behaviour(),
        "d": Behaviour(),
    }


@given(BATCHES, st.none() | BATCHES, SEEDS, st.sampled_from((0, 0, 1, 2)), st.booleans(), st.booleans())
def test_results_equal_the_reference(
    batch: Batch, second: Batch | None, seed: int, crashes: int, impatient: bool, far: bool
) -> None:
    graph = fanned(batch, second, None, ())
    patient = Retry(max_attempts=50, interval_s=0.0)
    graph = replace(graph, stages={name: replace(each, retry=patient) for name, each in graph.stages.items()})
    script = Script(HostCore(CoreConfig()), seed=seed, crashes=crashes, impatient=impatient, far=far)
    for caller in play(script, graph, behaviours(), numbered(script, graph, 2)):
        (end, *_) = outcomes(graph, behaviours(), {"x": number_of(caller)})
        assert caller.failure is None
        assert end.outputs is not None
        assert caller.payloads() == dict(end.outputs)
    event(f"largest batch {script.largest_batch}")


@given(BATCHES, SEEDS, st.sampled_from(("none", "retry", "catch")), st.integers(1, 3))
def test_a_failing_member_fails_alone(batch: Batch, seed: int, mend: str, one_in: int) -> None:
    retry = Retry(max_attempts=2, interval_s=0.0) if mend == "retry" else None
    catch = (Catch(output={"out": 7}),) if mend == "catch" else ()
    graph = fanned(batch, None, retry, catch)
    own = behaviours({1: Fault("ValueError", one_in=one_in)})
    script = Script(HostCore(CoreConfig()), seed=seed)
    for caller in play(script, graph, own, numbered(script, graph, 2)):
        ends = list(outcomes(graph, own, {"x": number_of(caller)}))
        check_legal(caller, ends)
    event(f"largest batch {script.largest_batch}")


@given(BATCHES, SEEDS, st.integers(1, 60), st.booleans(), st.booleans())
def test_a_cancelled_invocation_takes_no_other_along(
    batch: Batch, seed: int, step: int, stubborn: bool, far: bool
) -> None:
    graph = fanned(batch, None, None, ())
    script = Script(HostCore(CoreConfig()), seed=seed, stubborn=stubborn, far=far)
    script.cancel_at("i0", step, CANCELLED)
    first, *others = play(script, graph, behaviours(), numbered(script, graph, 3))
    assert first.failure is None or first.failure.kind == "Cancelled"
    for caller in others:
        if caller.failure is not None:  # a container that did not let go was killed
            assert stubborn
            assert caller.failure.kind == "ContainerCrashed"
            continue
        (end, *_) = outcomes(graph, behaviours(), {"x": number_of(caller)})
        assert caller.failure is None
        assert end.outputs is not None
        assert caller.payloads() == dict(end.outputs)


GROUPS = st.lists(
    st.builds(GroupPlan, st.integers(1, 5), st.integers(1, 2), st.just(0.0005), st.sampled_from((1.0, 3.0, 10.0))),
    min_size=1,
    max_size=3,
)


def stage_plans(name: str, behind: str) -> st.SearchStrategy[StageDispatch]:
    return st.builds(
        StageDispatch,
        st.just(name),
        GROUPS.map(tuple),
        st.sampled_from((0.001, 0.01, 1.0)),
        st.just(0.001),
        st.booleans(),
        st.sampled_from((0.0, 500.0)),
        behind=st.sampled_from(((), (behind,))),
        from_s=st.sampled_from((0.001, 0.01, 1.0)),
    )


PLANS = st.none() | st.builds(
    DispatchPlan,
    st.just(10.0),
    st.just(100.0),
    st.tuples(stage_plans("b", "a")) | st.tuples(stage_plans("b", "a"), stage_plans("c", "b")),
    st.just(False),
)


@given(
    BATCHES,
    st.none() | BATCHES,
    st.lists(PLANS, min_size=1, max_size=4),
    SEEDS,
    st.sampled_from((0, 0, 1)),
    st.booleans(),
)
def test_plans_that_come_and_go_change_no_result(
    batch: Batch, second: Batch | None, plans: list[DispatchPlan | None], seed: int, crashes: int, impatient: bool
) -> None:
    graph = fanned(batch, second, None, ())
    patient = Retry(max_attempts=50, interval_s=0.0)
    graph = replace(graph, stages={name: replace(each, retry=patient) for name, each in graph.stages.items()})
    script = Script(HostCore(CoreConfig()), seed=seed, crashes=crashes, impatient=impatient)
    script.add_workflow(WorkflowAdded("w@1", compile_program(graph)), behaviours())
    callers = numbered(script, graph, 2)
    for caller in callers:
        script.add_caller(caller)
    for number, plan in enumerate((*plans, None)):
        script.tell(PlanChanged("w@1", plan))
        for _ in range(10 + seed % 17 + number if number < len(plans) else 5000):
            if (event_ := script.next_event()) is None:
                break
            script.tell(event_)
    script.check_quiet()
    for caller in callers:
        (end, *_) = outcomes(graph, behaviours(), {"x": number_of(caller)})
        assert caller.failure is None
        assert end.outputs is not None
        assert caller.payloads() == dict(end.outputs)
