"""The core against the reference executor while a host dies with outputs that nobody else has."""

from __future__ import annotations

from hypothesis import event, given
from hypothesis import strategies as st
from scripts_for_tests import CANCELLED, SEEDS, all_outcomes, check_legal, play_scenario

from dataflower.core.host import CoreConfig, HostCore
from dataflower.core.lineage import staying
from dataflower.core.program import compile_program
from dataflower.testing.scripted import Script
from dataflower.testing.scripted_caller import ScriptedCaller
from dataflower.testing.workflows import Features, Scenario, scenarios


def play(scenario: Scenario, script: Script, everywhere: bool) -> ScriptedCaller:
    """Run to the end, every stage (or every second one) on the host that dies; nothing may be left."""
    names = [stage.name for stage in scenario.workflow.stages.values() if not stage.is_switch]
    places = dict.fromkeys(names if everywhere else names[::2], "b")
    stay = staying(compile_program(scenario.workflow), places)
    event("outputs stay" if stay else "all outputs leave")
    (caller,) = play_scenario(scenario, script, places=places)
    if script.lost:
        event("outputs were lost")
    return caller


@given(scenarios(Features(faults=False, retry_all=True, stages=6)), SEEDS, st.integers(1, 3), st.booleans())
def test_lost_outputs_change_no_result(scenario: Scenario, seed: int, losses: int, far: bool) -> None:
    ends = all_outcomes(scenario)
    script = Script(HostCore(CoreConfig()), seed=2 + seed, losses=losses, crashes=seed % 2, far=far)
    caller = play(scenario, script, everywhere=bool(seed % 3))
    assert caller.failure is None
    check_legal(caller, ends)


@given(
    scenarios(Features(faults=False, retry_all=True, tight_credit=True, partial_reads=False)), SEEDS, st.integers(1, 3)
)
def test_lost_outputs_block_nothing_where_credit_and_places_are_short(
    scenario: Scenario, seed: int, losses: int
) -> None:
    ends = all_outcomes(scenario)
    script = Script(HostCore(CoreConfig(cpus=1, max_containers=2)), seed=2 + seed, losses=losses)
    caller = play(scenario, script, everywhere=True)
    assert caller.failure is None
    check_legal(caller, ends)


@given(scenarios(), SEEDS, st.integers(1, 3))
def test_what_may_not_run_again_fails_with_the_right_kind(scenario: Scenario, seed: int, losses: int) -> None:
    ends = all_outcomes(scenario)
    script = Script(HostCore(CoreConfig()), seed=2 + seed, losses=losses)
    caller = play(scenario, script, everywhere=True)
    if not script.crashed:
        check_legal(caller, ends)
    if caller.failure is not None:
        event(f"failed with {caller.failure.kind}")
        assert caller.failure.stage in scenario.workflow.stages


@given(scenarios(Features(faults=False, retry_all=True)), SEEDS, st.integers(1, 80), st.integers(1, 3))
def test_cancellation_between_losses_leaves_nothing(scenario: Scenario, seed: int, step: int, losses: int) -> None:
    script = Script(HostCore(CoreConfig()), seed=2 + seed, losses=losses, stubborn=True)
    script.cancel_at("a", step, CANCELLED)
    caller = play(scenario, script, everywhere=True)
    assert caller.failure is None or caller.failure.kind == CANCELLED.kind
