"""Plan files as a host reads them, held against what it has. Imported with the first plan: many hosts never see one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dataflower.core.plan import DispatchPlan, Replan
from dataflower.host.settings import HostConfig
from dataflower.planner.dispatch import dispatch_plan
from dataflower.planner.document import PlanDocument, parse_plan
from dataflower.planner.room import Room, kept_by, needs_of, taken
from dataflower.spec.workflow import Workflow


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """A plan file, read: its text, what it says, and what it asks of the core."""

    text: str
    document: PlanDocument
    dispatch: DispatchPlan

    @property
    def is_watched(self) -> bool:
        """Whether the traffic is to be held against it."""
        return self.document.replan is not Replan.OFF

    @property
    def containers(self) -> int:
        """That it keeps warm."""
        return sum(kept_by(stage) for stage in self.document.stages.values())


@dataclass(frozen=True, slots=True)
class Other:
    """A workflow that runs by a plan beside the one that is planned; `away`: its stages on other hosts."""

    plan: ReadPlan
    workflow: Workflow
    away: frozenset[str]


def read_plan(text: str, file: str, workflow: Workflow) -> ReadPlan:
    """A plan file for this workflow. Takes some milliseconds.

    Raises:
        DocumentInvalid: it does not hold together, or is for another workflow.
    """
    document = parse_plan(text, file)
    return ReadPlan(text, document, dispatch_plan(document, workflow, file))


def made_plan(text: str, data: dict[str, Any], workflow: Workflow) -> ReadPlan:
    """A plan that this host has had made: the text of the file, and the same as plain values.

    It takes a hundredth of the time that reading the text takes, which the loop has to give.

    Raises:
        DocumentInvalid: it is for another workflow.
    """
    document = PlanDocument.model_validate(data)
    return ReadPlan(text, document, dispatch_plan(document, workflow, "the new plan"))


def room_of(config: HostConfig, workflow: Workflow, others: Iterable[Other], kept: int, away: frozenset[str]) -> Room:
    """What a host has for one more plan, of this workflow.

    Args:
        config: of the host.
        workflow: that is planned; what its stages need goes with the room.
        others: the plans of other workflows, which keep cores busy and take memory.
        kept: containers that other workflows keep.
        away: stages on other hosts.
    """
    cores, memory = 0.0, 0
    for other in others:
        own_cores, own_memory = taken(other.plan.document, needs_of(other.workflow), other.away)
        cores += sum(own_cores.values())
        memory += sum(own_memory.values())
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Room(
        config.max_containers,
        config.devices,
        config.cpus,
        memory_bytes,
        kept,
        away,
        needs=needs_of(workflow),
        kept_cpus=cores,
        kept_bytes=memory,
    )
