"""The core against the reference executor: random workflows, inputs, behaviours and interleavings."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

from hypothesis import event, given
from hypothesis import strategies as st
from scripts_for_tests import CANCELLED, SEEDS, all_outcomes, check_legal, play_scenario

from dataflower.core.events import WorkflowAdded
from dataflower.core.host import CoreConfig, HostCore
from dataflower.core.program import compile_program
from dataflower.errors import Code
from dataflower.spec.workflow import Credit, Scaling, Workflow
from dataflower.testing.behaviour import Behaviour, Shape
from dataflower.testing.outcome import Outcome
from dataflower.testing.reference import outcomes
from dataflower.testing.scripted import Script, replay
from dataflower.testing.scripted_caller import ScriptedCaller
from dataflower.testing.story import stage, workflow
from dataflower.testing.workflows import Features, Scenario, scenarios


def check_tasks(script: Script, caller: ScriptedCaller, ends: list[Outcome]) -> None:
    """Only tasks ran that may, each attempt once."""
    mine = [(stage, tag, attempt) for invocation, stage, tag, attempt in script.ran if invocation == caller.invocation]
    assert len(mine) == len(set(mine)), f"a task ran twice: {mine}"
    legal = frozenset().union(*(end.tasks for end in ends))
    assert {(stage, tag) for stage, tag, _ in mine} <= legal


@given(scenarios(), SEEDS, st.booleans())
def test_outputs_and_failures_equal_the_reference(scenario: Scenario, seed: int, far: bool) -> None:
    ends = all_outcomes(scenario)
    script = Script(HostCore(CoreConfig()), seed=seed, far=far)
    (caller,) = play_scenario(scenario, script)
    check_legal(caller, ends)
    check_tasks(script, caller, ends)


@given(scenarios(Features(faults=False, tight_credit=True, partial_reads=False)), SEEDS)
def test_tight_credit_changes_no_result_and_blocks_nothing(scenario: Scenario, seed: int) -> None:
    ends = all_outcomes(scenario)
    script = Script(HostCore(CoreConfig(cpus=1)), seed=seed)
    (caller,) = play_scenario(scenario, script)
    assert caller.failure is None
    check_legal(caller, ends)


@given(
    scenarios(Features(faults=False, tight_credit=True, partial_reads=False)), SEEDS, st.integers(1, 3), st.booleans()
)
def test_few_places_change_no_result_and_block_nothing(scenario: Scenario, seed: int, places: int, far: bool) -> None:
    ends = all_outcomes(scenario)
    script = Script(HostCore(CoreConfig(cpus=1 + seed % 2, max_containers=places)), seed=seed, far=far)
    (caller,) = play_scenario(scenario, script)
    assert caller.failure is None
    check_legal(caller, ends)
    assert script.most_containers <= max(places, len(scenario.behaviours) + places - 1)
    event("beyond the limit" if script.most_containers > places else "within the limit")


@given(scenarios(Features(hangs=True)), SEEDS)
def test_hanging_tasks_time_out(scenario: Scenario, seed: int) -> None:
    ends = all_outcomes(scenario)
    script = Script(HostCore(CoreConfig()), seed=seed)
    (caller,) = play_scenario(scenario, script)
    check_legal(caller, ends)


@given(scenarios(Features(faults=False, retry_all=True, stages=5)), SEEDS, st.integers(1, 3), st.booleans())
def test_crashes_with_retry_change_no_result(scenario: Scenario, seed: int, crashes: int, far: bool) -> None:
    ends = all_outcomes(scenario)
    script = Script(HostCore(CoreConfig()), seed=seed, crashes=crashes, far=far)
    (caller,) = play_scenario(scenario, script)
    assert caller.failure is None
    check_legal(caller, ends)


@given(scenarios(Features(faults=False, stages=5)), SEEDS)
def test_a_crash_without_retry_is_a_typed_failure(scenario: Scenario, seed: int) -> None:
    ends = all_outcomes(scenario)
    script = Script(HostCore(CoreConfig()), seed=seed, crashes=1)
    (caller,) = play_scenario(scenario, script)
    if caller.failure is None:
        check_legal(caller, ends)
    else:
        assert caller.failure.kind == "ContainerCrashed"
        assert caller.failure.stage in script.crashed
        assert caller.failure.attempt == 1


@given(scenarios(), SEEDS, st.integers(1, 60), st.booleans())
def test_cancellation_at_any_moment_leaves_nothing(scenario: Scenario, seed: int, step: int, far: bool) -> None:
    ends = all_outcomes(scenario)
    script = Script(HostCore(CoreConfig()), seed=seed, stubborn=True, far=far)
    caller = ScriptedCaller("a", "w@1", scenario.workflow, scenario.inputs, slots=script.slots)
    script.cancel_at("a", step, CANCELLED)
    play_scenario(scenario, script, caller)
    if caller.failure is not None and caller.failure.kind == CANCELLED.kind:
        event("cancelled")
        assert caller.failure.code is Code.CANCELLED
    else:
        check_legal(caller, ends)


# Without retries: whether one still starts depends on the time left, which the reference does not know.
@given(scenarios(Features(hangs=True, retries=False)), SEEDS, st.integers(1, 60), st.booleans())
def test_a_deadline_ends_it_at_once(scenario: Scenario, seed: int, steps: int, far: bool) -> None:
    ends = all_outcomes(scenario)
    script = Script(HostCore(CoreConfig()), seed=seed, impatient=True, far=far)
    deadline = script.clock.monotonic() + steps * 0.0001
    caller = ScriptedCaller("a", "w@1", scenario.workflow, scenario.inputs, deadline=deadline, slots=script.slots)
    play_scenario(scenario, script, caller)
    if caller.failure is not None and caller.failure.code is Code.DEADLINE_EXCEEDED and not caller.failure.stage:
        event("too late")
    else:
        check_legal(caller, ends)


@given(st.lists(scenarios(Features(stages=4)), min_size=2, max_size=3), SEEDS)
def test_invocations_do_not_disturb_each_other(several: list[Scenario], seed: int) -> None:
    script = Script(HostCore(CoreConfig()), seed=seed)
    callers = []
    for number, scenario in enumerate(several):
        key = f"w{number}@1"
        workflow = replace(scenario.workflow, name=f"w{number}")
        script.add_workflow(WorkflowAdded(key, compile_program(workflow)), scenario.behaviours)
        for copy in range(2):
            caller = ScriptedCaller(f"{number}/{copy}", key, workflow, scenario.inputs, slots=script.slots)
            script.add_caller(caller)
            callers.append((caller, all_outcomes(scenario)))
    script.run()
    script.check_quiet()
    for caller, ends in callers:
        check_legal(caller, ends)
        check_tasks(script, caller, ends)


@given(scenarios(Features(hangs=True)), SEEDS, st.integers(0, 2))
def test_the_same_events_give_the_same_commands(scenario: Scenario, seed: int, crashes: int) -> None:
    script = Script(HostCore(CoreConfig()), seed=seed, crashes=crashes)
    play_scenario(scenario, script)
    again = replay(HostCore(CoreConfig()), script.log)
    for (said, _), first, second in zip(script.log, script.answers, again, strict=True):
        assert first == second, f"after {said}"


def producer_and_reader(ways: str, credit: int, places: int) -> Workflow:
    """A producer of 12 items with little credit, read item by item, as a stream, and by the caller."""
    producer = stage("a", {"x": "inputs.x"}, ["t*"], credit=Credit(items=credit))
    scaling = Scaling(max_replicas=places)
    readers = [
        stage("b", {"t": "each a.t"}, scaling=scaling),
        stage("c", {"s*": "a.t"}),
        stage("d", {"ts": "gather a.t"}),
    ]
    outputs = {"b": "gather b.out", "c": "c.out", "d": "d.out", "caller": "a.t"}
    return workflow([producer, *(r for r in readers if r.name in ways)], {w: outputs[w] for w in ways.split()})


@given(st.sampled_from(["b", "c", "caller", "b c", "c caller", "b c d caller"]), st.integers(1, 4), SEEDS)
def test_no_more_items_are_on_their_way_than_the_credit(ways: str, credit: int, seed: int) -> None:
    scenario = Scenario(
        producer_and_reader(ways, credit, places=1 + seed % 2),
        {"a": Behaviour({"t": Shape.TENSOR}, counts=(12,)), **{name: Behaviour() for name in "bcd"}},
        {"x": 1},
    )
    script = Script(HostCore(CoreConfig()), seed=seed)
    caller = ScriptedCaller("a", "w@1", scenario.workflow, scenario.inputs, slots=script.slots)
    script.add_workflow(WorkflowAdded("w@1", compile_program(scenario.workflow)), scenario.behaviours)
    script.add_caller(caller)
    while (said := script.next_event()) is not None:
        script.tell(said)
        for container in script.containers.values():
            for task in container.tasks.values():
                unread = [v for inbox in task.inboxes.values() for v in inbox.values[inbox.told :]]
                assert len(unread) <= credit
        waiting = caller.outputs["caller"].values[caller.outputs["caller"].taken :] if "caller" in ways else []
        assert len(waiting) <= credit
        running = [t for c in script.containers.values() if c.stage.name == "b" for t in c.tasks]
        assert len(running) <= credit
    script.check_quiet()
    check_legal(caller, all_outcomes(scenario))


@given(scenarios())
def test_the_reference_agrees_with_itself(scenario: Scenario) -> None:
    def first_ends() -> list[Outcome]:
        return list(islice(outcomes(scenario.workflow, scenario.behaviours, scenario.inputs), 20))

    assert first_ends() == first_ends()
