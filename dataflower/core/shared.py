"""Pools that several stages share: tasks of all of them go to the same containers, and there into one batch.

Stages say so (`isolation: shared`) and share with those of the same owner that run the same function on the same
weights in the same way; what differs between them is the LoRA adapter, and so each task brings its own. Everything
else of the core sees one pool with one stage that none of the files has.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace

import msgspec

from dataflower import wire
from dataflower.core.plan import StageDispatch
from dataflower.core.pool import Pool
from dataflower.spec.workflow import Isolation, Scaling, Stage

VERSION = 0
"""Of what isn't a workflow: those begin with 1."""


@dataclass(frozen=True, slots=True)
class Member:
    """A stage of a deployed workflow that has a part in a pool. `key`: of that workflow."""

    key: str
    stage: Stage


@dataclass(slots=True, eq=False)
class _Group:
    pool: Pool
    number: int
    members: list[Member] = field(default_factory=list)
    plans: dict[tuple[str, str], int] = field(default_factory=dict)
    """Containers that plans want, by key and stage."""


def is_shared(stage: Stage) -> bool:
    """Whether a stage shares its containers with its likes."""
    return stage.isolation is Isolation.SHARED and stage.batch is None


def served(key: str, stage: Stage) -> wire.Served:
    """What a container that several stages share is told of a task."""
    workflow, _, version = key.rpartition("@")
    return wire.Served(workflow, int(version) if version.isdigit() else VERSION, stage.name, stage.adapter)


class Sharing:
    """All pools that are shared, and by whom."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, Hashable], _Group] = {}
        self._of: dict[Pool, tuple[str, Hashable]] = {}

    def join(self, owner: str, member: Member, make: Callable[[str, Stage], Pool]) -> Pool:
        """The pool for a stage; `make(key, stage)` if it is the first of its kind."""
        what = (owner, _kind(member.stage))
        group = self._groups.get(what)
        if group is None:
            taken = {other.number for (whose, _), other in self._groups.items() if whose == owner}
            number = next(n for n in range(1, len(taken) + 2) if n not in taken)
            pool = make(f"{owner}@{VERSION}", _common(member.stage, f"shared-{number}"))
            group = self._groups[what] = _Group(pool, number)
            self._of[pool] = what
        group.members.append(member)
        _fit(group)
        return group.pool

    def leave(self, pool: Pool, member: Member) -> bool:
        """A workflow is gone. Gives whether others still need the pool."""
        what = self._of.get(pool)
        if what is None:
            return False
        group = self._groups[what]
        group.members.remove(member)
        if member not in group.members:
            group.plans.pop((member.key, member.stage.name), None)
        if group.members:
            _fit(group)
            return True
        del self._groups[what], self._of[pool]
        return False

    def follow(self, pool: Pool, member: Member, plan: StageDispatch | None) -> bool:
        """A plan says how many containers a stage needs; False if the pool is not shared."""
        what = self._of.get(pool)
        if what is None:
            return False
        group = self._groups[what]
        group.plans.pop((member.key, member.stage.name), None)
        if plan is not None:
            group.plans[member.key, member.stage.name] = sum(part.replicas for part in plan.groups)
        _fit(group)
        return True

    def members(self, pool: Pool) -> tuple[Member, ...]:
        """Who shares a pool; nobody if it is not shared."""
        what = self._of.get(pool)
        return () if what is None else tuple(self._groups[what].members)


def _kind(stage: Stage) -> Hashable:
    """What stages must have in common to share a container: all that a container is started with, but the adapter."""
    return (
        stage.function,
        stage.model,
        msgspec.json.encode(_params(stage), order="deterministic", enc_hook=repr),
        repr((stage.input_ports, stage.outputs)),
        stage.resources,
        stage.scaling.concurrency,
        stage.preload,
        stage.network,
    )


def _params(stage: Stage) -> dict[str, object]:
    return {name: value for name, value in stage.params.items() if name != "adapter"}


def _common(stage: Stage, name: str) -> Stage:
    """The stage that the containers are of."""
    return Stage(
        name=name,
        function=stage.function,
        params=_params(stage),
        input_ports=stage.input_ports,
        outputs=stage.outputs,
        resources=stage.resources,
        scaling=stage.scaling,
        preload=stage.preload,
        network=stage.network,
        model=stage.model,
    )


def _fit(group: _Group) -> None:
    """As many containers, and for as long, as the most demanding member says; with plans, as many as all of them."""
    stages = [member.stage for member in group.members]
    pool, scalings = group.pool, [stage.scaling for stage in stages]
    limits = [stage.start_timeout_s for stage in stages]
    most = [scaling.max_replicas for scaling in scalings if scaling.max_replicas is not None]
    pool.stage = replace(
        pool.stage,
        scaling=Scaling(
            min_replicas=max(scaling.min_replicas for scaling in scalings),
            max_replicas=max(most) if len(most) == len(scalings) else None,
            concurrency=pool.concurrency,
            keep_alive_s=max(scaling.keep_alive_s for scaling in scalings),
            max_queued=max(scaling.max_queued for scaling in scalings),
        ),
        start_timeout_s=None if None in limits else max(limit for limit in limits if limit is not None),
    )
    pool.resize()
    if group.plans:
        pool.min_replicas = max(pool.min_replicas, *group.plans.values())
        pool.max_replicas = max(pool.max_replicas, sum(group.plans.values()))
