"""Stages that share their containers, as metrics count them, the wire carries them and tables show them."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from dataflower.cli.records import stage_table
from dataflower.gateway._generated import workflow_pb2 as pb
from dataflower.gateway.messages import decode_workflow, encode_workflow
from dataflower.gateway.metrics import Metrics
from dataflower.host.api import StageStatus, WorkflowStatus
from dataflower.testing.fake_host import FakeHost

SHARED = {
    name: StageStatus("only", 0, 1, 0, 2, 9, pool="acme/shared-1", shares=(f"{other}/only",))
    for name, other in (("hot", "cold"), ("cold", "hot"))
}
OWN = StageStatus("only", 0, 0, 1, 0, 3)


class Host(FakeHost):
    """Two workflows that share a container, and one that doesn't."""

    def workflows(self) -> tuple[WorkflowStatus, ...]:
        return tuple(replace(s, stages=(SHARED.get(s.name, OWN),)) for s in super().workflows())


def host() -> Host:
    made = Host()
    for name in ("hot", "cold", "own"):
        made.add(name, lambda x: x)
    return made


def test_containers_that_are_shared_are_counted_once_under_their_owner() -> None:
    families = {family.name: family for family in Metrics(host()).families()}
    counted = {
        (s.labels["workflow"], s.labels["stage"], s.labels["state"]): s.value
        for s in families["dataflower_containers"].samples
    }
    assert sum(counted.values()) == 2
    assert (counted["acme", "shared-1", "idle"], counted["own", "only", "busy"]) == (1, 1)
    queued = [(s.labels["workflow"], s.value) for s in families["dataflower_stage_queued_tasks"].samples]
    assert sorted(queued) == [("acme", 2), ("own", 0)]


def test_who_shares_crosses_the_wire_and_is_shown() -> None:
    (cold, hot, own) = host().workflows()
    message = pb.Workflow()
    encode_workflow(hot, message, source=False)
    assert decode_workflow(message).stages == (SHARED["hot"],)
    shown = Console(file=io.StringIO(), width=120)
    shown.print(stage_table([*hot.stages, *own.stages]))
    assert isinstance(shown.file, io.StringIO)
    text = shown.file.getvalue()
    assert "acme/shared-1, with cold/only" in text
    assert "its own" in text
    assert cold.stages[0].shares == ("hot/only",)
