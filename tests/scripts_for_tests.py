"""What property tests of the core share: a script played to its end, and what its callers may see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hypothesis import assume, event
from hypothesis import strategies as st

from dataflower.core.events import WorkflowAdded
from dataflower.core.program import compile_program
from dataflower.errors import Code, Failure
from dataflower.spec.workflow import Workflow
from dataflower.testing import outcome
from dataflower.testing.behaviour import Behaviour
from dataflower.testing.outcome import Outcome, TooMany
from dataflower.testing.reference import outcomes
from dataflower.testing.scripted import Script
from dataflower.testing.scripted_caller import ScriptedCaller
from dataflower.testing.workflows import Scenario

SEEDS = st.integers(0, 1 << 16)
CANCELLED = Failure(Code.CANCELLED, "Cancelled", "not wanted any more")


def numbered(script: Script, graph: Workflow, count: int) -> list[ScriptedCaller]:
    """Callers whose input `x` is their number."""
    return [ScriptedCaller(f"i{n}", "w@1", graph, {"x": n}, slots=script.slots) for n in range(count)]


def number_of(caller: ScriptedCaller) -> int:
    """The number of one of those."""
    return int(caller.invocation[1:])


def play(
    script: Script,
    graph: Workflow,
    behaviours: Mapping[str, Behaviour],
    callers: Iterable[ScriptedCaller],
    places: dict[str, str] | None = None,
    *,
    warm: bool = False,
) -> list[ScriptedCaller]:
    """Run a workflow to the end of all calls, and check that nothing is left, or only `warm` containers.

    `places`: stage -> other host.
    """
    script.add_workflow(WorkflowAdded("w@1", compile_program(graph), places or {}), behaviours)
    found = list(callers)
    for caller in found:
        script.add_caller(caller)
    script.run()
    script.check_quiet(warm=warm)
    return found


def play_scenario(
    scenario: Scenario, script: Script, *callers: ScriptedCaller, places: dict[str, str] | None = None
) -> list[ScriptedCaller]:
    """`play` for a scenario, with one caller unless told otherwise."""
    one = ScriptedCaller("a", "w@1", scenario.workflow, scenario.inputs, slots=script.slots)
    return play(script, scenario.workflow, scenario.behaviours, callers or [one], places)


def all_outcomes(scenario: Scenario, limit: int = 400) -> list[Outcome]:
    """The legal ends; scenarios with too many are not for us."""
    try:
        return list(outcomes(scenario.workflow, scenario.behaviours, scenario.inputs, limit))
    except TooMany:
        assume(False)
        raise


def check_legal(caller: ScriptedCaller, ends: Iterable[Outcome]) -> None:
    """The caller saw one of the legal ends."""
    outcome.check_legal(list(ends), caller.payloads() if caller.failure is None else {}, caller.failure)
    event("failed" if caller.failure is not None else "succeeded")
