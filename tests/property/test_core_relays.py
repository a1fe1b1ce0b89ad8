"""Outputs that go straight to the next container change no result, whatever dies, fails or is cancelled meanwhile."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import event, given
from hypothesis import strategies as st
from scripts_for_tests import CANCELLED, SEEDS, check_legal, number_of, numbered, play

from dataflower.core.host import CoreConfig, HostCore
from dataflower.spec.workflow import Catch, Retry, Scaling, Workflow
from dataflower.testing.behaviour import Behaviour, Fault, Shape
from dataflower.testing.reference import outcomes
from dataflower.testing.scripted import Script
from dataflower.testing.scripted_caller import ScriptedCaller
from dataflower.testing.story import stage, workflow

AGAIN = Retry(max_attempts=50, interval_s=0.0)


def chained(length: int, replicas: int, *, fanned: bool) -> Workflow:
    """A chain whose first outputs are also read elsewhere, for a value or for each item of a stream."""
    scaling = Scaling(min_replicas=1, max_replicas=replicas)
    first = {"v": "each a.t"} if fanned else {"v": "a.t"}
    stages = [stage("a", {"x": "inputs.x"}, ["t*" if fanned else "t"], scaling=scaling)]
    stages.append(stage("s0", first, scaling=scaling))
    stages += [stage(f"s{n}", {"v": f"s{n - 1}.out"}, scaling=scaling) for n in range(1, length)]
    last = f"s{length - 1}.out"
    way = "gather " if fanned else ""
    stages.append(stage("beside", {"v": "s0.out"}, scaling=scaling))
    return workflow(stages, {"y": f"{way}{last}", "beside": f"{way}beside.out"})


GRAPHS = st.builds(chained, st.integers(1, 4), st.integers(1, 3), fanned=st.booleans())


def behaviours(graph: Workflow, faults: dict[int, Fault] | None = None) -> dict[str, Behaviour]:
    found = {name: Behaviour({"out": Shape.FORWARD}) for name in graph.stages}
    found["a"] = Behaviour({"t": Shape.TENSOR}, counts=(3, 2))
    found["s0"] = Behaviour({"out": Shape.TENSOR}, faults=faults or {})
    if "s2" in found:
        found["s2"] = Behaviour({"out": Shape.TENSOR}, faults=faults or {})
    return found


def run(script: Script, graph: Workflow, own: dict[str, Behaviour], count: int) -> list[ScriptedCaller]:
    found = play(script, graph, own, numbered(script, graph, count), warm=True)
    assert all(caller.finished for caller in found)
    event(f"relayed {min(3, script.relayed)}")
    return found


def check(graph: Workflow, own: dict[str, Behaviour], caller: ScriptedCaller) -> None:
    check_legal(caller, outcomes(graph, own, {"x": number_of(caller)}))


@given(GRAPHS, SEEDS, st.integers(0, 4), st.booleans())
def test_crashes_change_no_result(graph: Workflow, seed: int, crashes: int, impatient: bool) -> None:
    graph = replace(graph, stages={name: replace(each, retry=AGAIN) for name, each in graph.stages.items()})
    script = Script(HostCore(CoreConfig()), seed=seed, crashes=crashes, impatient=impatient)
    own = behaviours(graph)
    for caller in run(script, graph, own, 6):
        assert caller.failure is None
        check(graph, own, caller)


@given(GRAPHS, SEEDS, st.sampled_from(("none", "retry", "catch")), st.integers(1, 3))
def test_failures_are_those_of_the_reference(graph: Workflow, seed: int, mend: str, one_in: int) -> None:
    mended = {
        "none": lambda each: each,
        "retry": lambda each: replace(each, retry=Retry(max_attempts=2, interval_s=0.0)),
        "catch": lambda each: replace(each, catch=(Catch(output={"out": 7}),) if each.name != "a" else ()),
    }[mend]
    graph = replace(graph, stages={name: mended(each) for name, each in graph.stages.items()})
    own = behaviours(graph, {1: Fault("ValueError", one_in=one_in)})
    script = Script(HostCore(CoreConfig()), seed=seed)
    for caller in run(script, graph, own, 4):
        check(graph, own, caller)


@given(GRAPHS, SEEDS, st.integers(1, 60), st.booleans(), st.integers(0, 2))
def test_a_cancelled_invocation_takes_no_other_along(
    graph: Workflow, seed: int, step: int, stubborn: bool, crashes: int
) -> None:
    graph = replace(graph, stages={name: replace(each, retry=AGAIN) for name, each in graph.stages.items()})
    script = Script(HostCore(CoreConfig()), seed=seed, stubborn=stubborn, crashes=crashes)
    script.cancel_at("i1", step, CANCELLED)
    own = behaviours(graph)
    for caller in run(script, graph, own, 5):
        if caller.invocation == "i1" and caller.failure is not None:
            assert caller.failure.kind == "Cancelled"
        else:
            check(graph, own, caller)
