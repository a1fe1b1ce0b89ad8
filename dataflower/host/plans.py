"""Plan files as a host reads them, held against what it has. Imported with the first plan: many hosts never see one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from dataflower.core.plan import DispatchPlan, Replan
from dataflower.host.settings import HostConfig
from dataflower.planner.dispatch import dispatch_plan
from dataflower.planner.document import PlanDocument, parse_plan
from dataflower.planner.room import Room, kept_by
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


def room_of(config: HostConfig, kept: int, away: frozenset[str]) -> Room:
    """What a host has for one more plan beside the `kept` containers of others; `away`: stages on other hosts."""
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Room(config.max_containers, config.devices, config.cpus, memory_bytes, kept, away)
