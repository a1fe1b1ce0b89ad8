"""The workflows of a host: which version of each name serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataflower.clock import Clock
from dataflower.core.events import PlanChanged, WorkflowAdded, WorkflowRemoved
from dataflower.core.host import HostCore, StageCounts
from dataflower.core.program import compile_program
from dataflower.errors import Code, DataflowerError, FailedPrecondition, NotFound
from dataflower.host.api import StageStatus, WorkflowStatus
from dataflower.host.engine import Engine
from dataflower.host.fitting import check_weights
from dataflower.host.isolation import Gate
from dataflower.host.journal import Journal, StoredWorkflow
from dataflower.host.settings import HostConfig
from dataflower.spec.function import Port
from dataflower.spec.suggest import did_you_mean
from dataflower.spec.workflow import Workflow

if TYPE_CHECKING:
    from dataflower.host.plans import ReadPlan
    from dataflower.host.replanning import Replanning, Watch
    from dataflower.planner.room import Room

_log = logging.getLogger(__name__)


Load = Callable[[str, str], Workflow]
"""YAML text and a name for messages -> workflow; raises DataflowerError."""


@dataclass(slots=True, eq=False)
class Deployed:
    """A version of a workflow that the core has."""

    name: str
    version: int
    workflow: Workflow
    source: str
    applied_at: float
    inputs: dict[str, Port]
    streams: frozenset[str]
    """Outputs that come item by item."""
    running: int = 0
    planned: ReadPlan | None = None
    """The plan that it is run by."""
    watch: Watch | None = None
    """Who counts its invocations, if its plan follows the traffic."""

    @property
    def plan(self) -> str:
        """Its text, empty if there is none."""
        return "" if self.planned is None else self.planned.text

    @property
    def kept(self) -> int:
        """Containers that it keeps warm."""
        if self.planned is not None:
            return self.planned.containers
        return sum(stage.scaling.min_replicas for stage in self.workflow.stages.values())

    @property
    def key(self) -> str:
        """What the core calls it."""
        return f"{self.name}@{self.version}"


class Registry:
    """Applies and forgets workflows, in the journal and in the core."""

    def __init__(
        self,
        engine: Engine,
        core: HostCore,
        journal: Journal,
        clock: Clock,
        config: HostConfig,
        *,
        load: Load | None,
    ) -> None:
        self._engine = engine
        self._core = core
        self._journal = journal
        self._clock = clock
        self._load = load
        self._config = config
        self._serving: dict[str, Deployed] = {}
        self._newest: dict[str, int] = {}
        self._revived: dict[tuple[str, int], Deployed] = {}
        self._applying = asyncio.Lock()
        self._gate = Gate()
        self._replanning: Replanning | None = None
        """Made with the first plan that wants it."""

    def restore(self) -> None:
        """Serve again what was served. A workflow that can't be loaded any more is left out, loudly."""
        for stored in self._journal.workflows():
            self._newest[stored.name] = max(stored.version, self._newest.get(stored.name, 0))
            if stored.serving:
                try:
                    self._serving[stored.name] = self.deploy(stored)
                except (DataflowerError, OSError) as error:
                    _log.error("workflow %r can't be loaded any more and is not served: %s", stored.name, error)

    def deploy(self, stored: StoredWorkflow) -> Deployed:
        """Give a stored version to the core. Raises DataflowerError if it can't be loaded."""
        if self._load is None:
            raise FailedPrecondition("this host was started without a way to load workflows")
        return self._add(self._load(stored.source, f"{stored.name}@{stored.version}"), stored)

    def revive(self, name: str, version: int) -> Deployed:
        """The very version that an interrupted invocation belongs to, whether it still serves or not.

        Raises NotFound if the journal has it no more, and DataflowerError if it can't be loaded.
        """
        serving = self._serving.get(name)
        if serving is not None and serving.version == version:
            return serving
        known = self._revived.get((name, version))
        if known is None:
            stored = next((s for s in self._journal.workflows() if (s.name, s.version) == (name, version)), None)
            if stored is None:
                raise NotFound(f"version {version} of workflow {name!r} is gone")
            known = self._revived[name, version] = self.deploy(stored)
        return known

    def retire_revived(self) -> None:
        """Every interrupted invocation has been started again: take no others for superseded versions."""
        for deployed in self._revived.values():
            self.retire(deployed)
        self._revived.clear()

    def _add(self, workflow: Workflow, stored: StoredWorkflow) -> Deployed:
        plan = self._kept_plan(workflow, stored)
        program = compile_program(_started(workflow, plan))
        deployed = Deployed(
            name=stored.name,
            version=stored.version,
            workflow=workflow,
            source=stored.source,
            applied_at=stored.applied_at,
            inputs={port.name: port for port in workflow.inputs},
            streams=frozenset(output.name for output in program.outputs if output.stream),
        )
        self._engine.feed(WorkflowAdded(deployed.key, program, self._engine.remotes.placement.places(workflow)))
        if plan is not None:
            self._follow(deployed, plan)
        return deployed

    def _kept_plan(self, workflow: Workflow, stored: StoredWorkflow) -> ReadPlan | None:
        if not stored.plan:
            return None
        try:
            return self._fitting(self._read(stored.plan, workflow), workflow)
        except DataflowerError as error:
            _log.error("the plan of workflow %r can't be kept any more and is left out: %s", stored.name, error)
            return None

    def _read(self, text: str, workflow: Workflow, file: str = "plan") -> ReadPlan:
        """Raises DocumentInvalid."""
        from dataflower.host import plans

        return plans.read_plan(text, file, workflow)

    def _fitting(self, plan: ReadPlan, workflow: Workflow, file: str = "plan") -> ReadPlan:
        """The plan itself. Raises DocumentInvalid if it has no room beside all other workflows."""
        from dataflower.planner.room import check_room

        check_room(plan.document, workflow, self.room(workflow), file)
        return plan

    def _follow(self, deployed: Deployed, plan: ReadPlan | None) -> None:
        deployed.planned = plan
        self._engine.feed(PlanChanged(deployed.key, None if plan is None else plan.dispatch))
        if plan is not None and plan.is_watched and self._replanning is None:
            from dataflower.host.replanning import Replanning

            self._replanning = Replanning(self, self._config, self._clock)
        if self._replanning is not None:
            self._replanning.watch(deployed)

    def room(self, workflow: Workflow) -> Room:
        """What there is for a plan of this workflow, beside all others."""
        from dataflower.host.plans import Other, room_of

        others = [other for name, other in self._serving.items() if name != workflow.name]
        planned = [Other(o.planned, o.workflow, self._away(o.workflow)) for o in others if o.planned is not None]
        kept = sum(other.kept for other in others)
        return room_of(self._config, workflow, planned, kept, self._away(workflow))

    def _away(self, workflow: Workflow) -> frozenset[str]:
        """Its stages on other hosts."""
        place = self._engine.remotes.placement.of
        stages = [stage for stage in workflow.stages.values() if not stage.is_switch]
        return frozenset(stage.name for stage in stages if place(workflow.name, stage))

    def run_over_plan(self, deployed: Deployed) -> dict[str, float]:
        """Measured over planned run time of its stages, where it is known."""
        rows = self._core.stages(deployed.key)
        return {row.stage: row.run_over_plan for row in rows if row.run_over_plan is not None}

    async def swap(self, deployed: Deployed, former: ReadPlan, plan: ReadPlan) -> bool:
        """Run it by another plan, if it still runs by `former`; nothing that runs or waits is touched by that.

        Raises:
            DocumentInvalid: there is no room for the plan.
            Unavailable: the journal could not be written.
        """
        async with self._applying:
            if self._serving.get(deployed.name) is not deployed or deployed.planned is not former:
                return False
            self._fitting(plan, deployed.workflow)
            await self._journal.put_workflow(
                StoredWorkflow(deployed.name, deployed.version, deployed.source, deployed.applied_at, plan=plan.text)
            )
            deployed.planned = plan
            self._engine.feed(PlanChanged(deployed.key, plan.dispatch))
            return True

    async def close(self) -> None:
        """Plan nothing anew any more."""
        if self._replanning is not None:
            await self._replanning.close()

    def retire(self, deployed: Deployed) -> None:
        """Take no new invocations for a version; its containers stop when the running ones are over."""
        if self._replanning is not None:
            self._replanning.forget(deployed)
        self._engine.feed(WorkflowRemoved(deployed.key))

    async def apply(
        self,
        workflow: Workflow,
        source: str,
        expected_version: int | None,
        plan: str | None = None,
        plan_file: str = "plan",
    ) -> Deployed:
        """See `HostApi.apply`."""
        read = await asyncio.to_thread(self._read, plan, workflow, plan_file) if plan else None
        async with self._applying:
            if read is not None:
                self._fitting(read, workflow, plan_file)
            current = self._serving.get(workflow.name)
            version = 0 if current is None else current.version
            if expected_version is not None and expected_version != version:
                raise DataflowerError(
                    f"workflow {workflow.name!r} is at version {version}, not {expected_version}", code=Code.ABORTED
                )
            same_start = plan is None or (
                current is not None and _started(workflow, read) == _started(workflow, current.planned)
            )
            if current is not None and current.source == source and same_start:
                if plan is not None and plan != current.plan:
                    same = StoredWorkflow(workflow.name, version, source, current.applied_at, plan=plan)
                    await self._journal.put_workflow(same)
                    self._follow(current, read)
                return current
            self._engine.remotes.placement.check(workflow)
            await asyncio.to_thread(check_weights, workflow, self._config, self._away(workflow))
            await self._gate.check(workflow)
            compile_program(workflow)  # refuse before anything is written
            version = self._newest.get(workflow.name, 0) + 1
            stored = StoredWorkflow(workflow.name, version, source, self._clock.wall(), plan=plan or "")
            await self._journal.put_workflow(stored)
            self._newest[workflow.name] = stored.version
            deployed = self._serving[workflow.name] = self._add(workflow, stored)
            if current is not None:
                self.retire(current)
            return deployed

    async def delete(self, name: str) -> None:
        """See `HostApi.delete`."""
        async with self._applying:
            deployed = self.find(name)
            await self._journal.delete_workflow(name)
            del self._serving[name]
            self.retire(deployed)

    def find(self, name: str) -> Deployed:
        """The version that serves; NotFound."""
        deployed = self._serving.get(name)
        if deployed is None:
            raise NotFound(f"no workflow {name!r} ({did_you_mean(name, self._serving, none='none is applied')})")
        return deployed

    def names(self) -> list[str]:
        """Of the workflows that serve, sorted."""
        return sorted(self._serving)

    def status(self, deployed: Deployed) -> WorkflowStatus:
        """As the public API shows it."""
        key = deployed.key
        stages = tuple(self._stage_status(row) for row in self._core.stages(key))
        return WorkflowStatus(
            name=deployed.name,
            version=deployed.version,
            workflow=deployed.workflow,
            source=deployed.source,
            applied_at=deployed.applied_at,
            plan=deployed.plan,
            stages=stages,
            running=deployed.running,
            replanning=None if self._replanning is None else self._replanning.status(deployed),
        )

    def _stage_status(self, row: StageCounts) -> StageStatus:
        return StageStatus(
            row.stage,
            row.starting,
            row.idle,
            row.busy,
            row.queued,
            self._engine.done(row.key, row.containers_of),
            f"{row.key.rpartition('@')[0]}/{row.containers_of}" if row.is_shared else "",
            row.shares,
            row.run_over_plan,
            row.is_slow,
        )


def _started(workflow: Workflow, plan: ReadPlan | None) -> Workflow:
    """As its containers are started under a plan: where that differs, another plan takes a new version."""
    if plan is None:
        return workflow
    from dataflower.planner.dispatch import tuned

    return tuned(workflow, plan.document)
