"""Tasks given ahead of places change no result, begin once for each attempt, and cost nothing if they had not begun."""

from __future__ import annotations

from hypothesis import event, given
from hypothesis import strategies as st
from scripts_for_tests import CANCELLED, SEEDS, number_of, numbered, play

from dataflower.core import commands
from dataflower.core.host import CoreConfig, HostCore
from dataflower.spec.workflow import Retry, Scaling, Workflow
from dataflower.testing.behaviour import Behaviour, Shape
from dataflower.testing.reference import outcomes
from dataflower.testing.scripted import Script
from dataflower.testing.scripted_caller import ScriptedCaller
from dataflower.testing.story import stage, workflow
from dataflower.wire import RunTask, Withdraw


def graph_of(length: int, replicas: int, concurrency: int, *, fanned: bool, retry: bool) -> Workflow:
    """A chain of brief stages, for a value or for each item of a stream, with few places."""
    again = Retry(max_attempts=50, interval_s=0.0) if retry else None
    scaling = Scaling(max_replicas=replicas, concurrency=concurrency)
    stages = [stage("a", {"x": "inputs.x"}, ["t*" if fanned else "t"], retry=again)]
    stages.append(stage("s0", {"v": "each a.t" if fanned else "a.t"}, scaling=scaling, retry=again))
    stages += [stage(f"s{n}", {"v": f"s{n - 1}.out"}, scaling=scaling, retry=again) for n in range(1, length)]
    way = "gather " if fanned else ""
    return workflow(stages, {"y": f"{way}s{length - 1}.out"})


def graphs(*, retry: bool) -> st.SearchStrategy[Workflow]:
    numbers = (st.integers(1, 3), st.integers(1, 2), st.integers(1, 2))
    return st.builds(graph_of, *numbers, fanned=st.booleans(), retry=st.just(retry))


def behaviours(graph: Workflow) -> dict[str, Behaviour]:
    found = {name: Behaviour({"out": Shape.TENSOR}) for name in graph.stages}
    return {**found, "a": Behaviour({"t": Shape.TENSOR}, counts=(7, 4))}


def run(script: Script, graph: Workflow, count: int) -> list[ScriptedCaller]:
    found = play(script, graph, behaviours(graph), numbered(script, graph, count))
    assert len(script.ran) == len(set(script.ran)), "a task began twice in one attempt"
    note(script)
    return found


def note(script: Script) -> None:
    """Say what was seen, so that it can be seen that anything was."""
    told = [c.message for answer in script.answers for c in answer if isinstance(c, commands.Tell)]
    event(f"withdrawn: {any(isinstance(message, Withdraw) for message in told)}")
    event(f"given out again: {sum(isinstance(message, RunTask) for message in told) > len(script.ran)}")


def is_right(graph: Workflow, caller: ScriptedCaller) -> bool:
    (end, *_) = outcomes(graph, behaviours(graph), {"x": number_of(caller)})
    return caller.failure is None and end.outputs is not None and caller.payloads() == dict(end.outputs)


@given(graphs(retry=True), SEEDS, st.integers(0, 4), st.integers(1, 8), st.booleans(), st.booleans())
def test_results_are_the_same_whatever_dies(
    graph: Workflow, seed: int, crashes: int, callers: int, impatient: bool, far: bool
) -> None:
    script = Script(HostCore(CoreConfig()), seed=seed, crashes=crashes, impatient=impatient, far=far)
    assert all(is_right(graph, caller) for caller in run(script, graph, callers))


@given(graphs(retry=False), SEEDS, st.integers(1, 3), st.integers(4, 10))
def test_a_death_costs_only_what_had_begun(graph: Workflow, seed: int, crashes: int, callers: int) -> None:
    script = Script(HostCore(CoreConfig()), seed=seed, crashes=crashes)
    failed = [caller.failure for caller in run(script, graph, callers) if caller.failure is not None]
    places = max(each.scaling.concurrency for each in graph.stages.values())
    # A giver that dies takes along what it handed on, as far as nobody heard of it.
    # So does one whose outputs are being copied, while the next has its place.
    assert len(failed) <= len(script.crashed) * (places + 1)
    assert all((failure.kind, failure.attempt) == ("ContainerCrashed", 1) for failure in failed)
    event(f"failed: {len(failed)}")


@given(graphs(retry=True), SEEDS, st.integers(1, 80), st.booleans(), st.integers(0, 2))
def test_what_is_cancelled_leaves_nothing_and_takes_nobody_along(
    graph: Workflow, seed: int, step: int, stubborn: bool, crashes: int
) -> None:
    script = Script(HostCore(CoreConfig()), seed=seed, stubborn=stubborn, crashes=crashes)
    script.cancel_at("i1", step, CANCELLED)
    for caller in run(script, graph, 7):
        if caller.invocation == "i1" and caller.failure is not None:
            assert caller.failure.kind == "Cancelled"
        else:
            assert is_right(graph, caller)
