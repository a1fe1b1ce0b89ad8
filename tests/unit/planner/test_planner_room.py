"""Plans that a host has no room for: each is refused with the stage, the figure and what would mend it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dataflower.planner.document import GroupDocument, PlanDocument, StageDocument
from dataflower.planner.measured import hardware, kind_of
from dataflower.planner.reading import DocumentInvalid
from dataflower.planner.room import Room, check_room, needs_of
from dataflower.spec.workflow import Resources, Stage, Workflow

ROOM = Room(containers=8, devices=("cpu", "h200"), cpus=4, memory_bytes=8 * 2**30)


def group(replicas: int, device: str = "cpu") -> GroupDocument:
    return GroupDocument(
        device=device,
        batch=4,
        machines=max(1, replicas),
        replicas=replicas,
        rate_per_s=16.0 * max(1, replicas),
        duration_ms=200.0,
        timeout_ms=50.0,
        worst_ms=250.0,
    )


def document(**stages: list[GroupDocument]) -> PlanDocument:
    made = {name: StageDocument(budget_ms=300.0, rate_per_s=16.0, groups=groups) for name, groups in stages.items()}
    return PlanDocument(
        apiVersion="dataflower/v1",
        workflow="w",
        rate_per_s=16.0,
        slo_ms=600.0,
        percentile=99.0,
        arrivals="poisson",
        billing="integer",
        cost_per_hour=1.0,
        cost_per_1000=1.0,
        worst_ms=500.0,
        stages=made,
    )


def workflow(resources: Resources | None = None) -> Workflow:
    return Workflow("w", {name: Stage(name, "m:f", resources=resources or Resources()) for name in ("a", "b")})


def refusal(plan: PlanDocument, room: Room, resources: Resources | None = None) -> str:
    with pytest.raises(DocumentInvalid) as caught:
        check_room(plan, workflow(resources), room, "plan.yaml")
    return str(caught.value)


def test_what_fits_exactly_is_taken() -> None:
    check_room(document(a=[group(3)], b=[group(4), group(1, "h200")]), workflow(), ROOM, "plan.yaml")


def test_too_many_containers_name_the_stage_with_the_most_and_both_figures() -> None:
    message = refusal(document(a=[group(3)], b=[group(4), group(2)]), ROOM)
    assert message.startswith("plan.yaml:1:1: the plan keeps 9 containers (6 of them for stage 'b')")
    assert "this host runs at most 8" in message
    assert "plan for a lower rate, or raise `max_containers`" in message


def test_what_other_workflows_keep_is_not_there_for_this_one() -> None:
    fits = document(a=[group(3)], b=[group(5)])
    check_room(fits, workflow(), ROOM, "plan.yaml")
    assert "and other workflows keep 1: this host runs at most 8" in refusal(fits, replace(ROOM, kept=1))


def test_a_stage_on_shared_machines_only_keeps_a_container_of_its_own() -> None:
    check_room(document(a=[group(7)], b=[group(0)]), workflow(), ROOM, "plan.yaml")
    assert "keeps 9 containers" in refusal(document(a=[group(8)], b=[group(0)]), ROOM)


def test_a_kind_of_device_that_is_not_there_is_refused_once_for_each_stage() -> None:
    message = refusal(document(a=[group(1, "v100"), group(1, "v100")], b=[group(1)]), ROOM)
    assert message.count("stage 'a' is planned on 'v100', which this host does not have: it has cpu, h200") == 1
    assert "plan with --device cpu, or name this machine's kinds in `devices`" in message
    assert "'b'" not in message


def test_replicas_of_several_cores_are_of_the_device_whose_cores_they_are() -> None:
    check_room(document(a=[group(1, hardware("cpu", 2))], b=[group(1, "h200 x0.5")]), workflow(), ROOM, "plan.yaml")
    assert "'v100 x2', which this host" in refusal(document(a=[group(1, "v100 x2")], b=[group(1)]), ROOM)
    assert [kind_of(hardware(d, n)) for d, n in (("cpu", 1), ("cpu", 2.5), ("a x", 1), (" x3", 1))] == [
        "cpu", "cpu", "a x", " x3",
    ]  # fmt: skip


def test_what_stages_on_other_hosts_are_and_have_is_not_asked_here() -> None:
    plan = document(a=[group(1)], b=[group(3, "v100")])
    away = replace(ROOM, away=frozenset({"b"}))
    check_room(plan, workflow(Resources(cpu=2)), away, "plan.yaml")
    assert "keeps 4 containers" in refusal(plan, replace(away, containers=3)), "they count: this host leads them"


def test_declared_cores_and_memory_count_and_those_that_nobody_declared_do_not() -> None:
    plan = document(a=[group(1)], b=[group(3)])
    check_room(plan, workflow(), replace(ROOM, cpus=1), "plan.yaml")
    assert "keeps 6.4 cores busy (4.8 of them with stage 'b'): this host has 4" in refusal(plan, ROOM, Resources(cpu=2))
    message = refusal(plan, ROOM, Resources(memory_bytes=3 * 2**30))
    assert "may take 12 GiB of memory (9 GiB of it for stage 'b'): this host has 8 GiB" in message


def test_what_the_plans_of_others_keep_busy_is_not_there_for_this_one() -> None:
    plan = document(a=[group(1)], b=[group(3)])
    check_room(plan, workflow(Resources(cpu=1.1)), replace(ROOM, kept_cpus=0.4), "plan.yaml")
    message = refusal(plan, replace(ROOM, kept_cpus=0.6), Resources(cpu=1.1))
    assert "keeps 3.52 cores busy" in message
    assert "and other workflows' plans 0.6: this host has 4" in message
    message = refusal(plan, replace(ROOM, kept_bytes=5 * 2**30), Resources(memory_bytes=2**30))
    assert "and those of other workflows' plans 5 GiB: this host has 8 GiB" in message
    check_room(plan, workflow(), replace(ROOM, kept_cpus=4.0, kept_bytes=8 * 2**30), "plan.yaml")


def test_where_the_workflow_is_not_at_hand_the_room_says_what_its_stages_need() -> None:
    plan = document(a=[group(1)], b=[group(3)])
    room = replace(ROOM, needs=needs_of(workflow(Resources(cpu=2))))
    with pytest.raises(DocumentInvalid, match=r"keeps 6\.4 cores busy"):
        check_room(plan, None, room, "plan.yaml")
    assert needs_of(workflow()) == {}
    check_room(plan, None, ROOM, "plan.yaml")
