"""One invocation and one deployed workflow, as the host core keeps them."""

from __future__ import annotations

from dataflower import wire
from dataflower.core.admission import Admission
from dataflower.core.instance import Instance
from dataflower.core.lineage import Made
from dataflower.core.matching import Flow
from dataflower.core.pool import Pool
from dataflower.core.preload import Library
from dataflower.core.program import Program
from dataflower.core.timers import Timer
from dataflower.core.trace import LIMIT, InvocationTrace, TaskTrace


class Deployment:
    """A workflow that can be invoked: its program and a pool for each stage that runs in containers."""

    __slots__ = ("admission", "calls", "key", "libraries", "pools", "program", "removed", "served", "staying")

    def __init__(self, key: str, program: Program, pools: dict[int, Pool]) -> None:
        self.key = key
        self.program = program
        self.pools = pools
        self.calls = 0
        self.staying: frozenset[int] = frozenset()
        """Stages whose outputs stay on the host where they are made, and may be lost with it."""
        self.admission: Admission | None = None
        """Set while it runs by a plan that refuses what can't be served in time."""
        self.removed = False
        self.libraries: tuple[Library, ...] = ()
        """Of the fork servers that its containers come from."""
        self.served: dict[int, wire.Served] = {}
        """What containers are told of tasks of stages that share them (`core.shared`), by number of the stage."""

    def named_pools(self) -> dict[str, Pool]:
        """The pools by the names that the workflow has for its stages."""
        return {self.program.stages[index].name: pool for index, pool in self.pools.items()}


class Call:
    """A running (or finished but still read) invocation."""

    __slots__ = (
        "deadline",
        "deadline_timer",
        "deployment",
        "finished",
        "flow",
        "lacking",
        "made",
        "released",
        "running",
        "short",
        "trace",
    )

    def __init__(self, flow: Flow, deployment: Deployment, deadline: float, now: float) -> None:
        self.flow = flow
        self.deployment = deployment
        self.deadline = deadline
        self.deadline_timer: Timer | None = None
        self.running = 0
        """Tasks in containers, doomed ones included."""
        self.made: dict[Made, None] = {}
        """Its tasks with outputs that may be lost, as far as these are needed."""
        self.lacking: dict[Instance, None] = {}
        """Its tasks that wait for lost outputs to be made again."""
        self.short: dict[Instance, None] = {}
        """Its running tasks of whose streams items are held back because they were lost."""
        self.finished = False
        self.released = False
        self.trace = InvocationTrace(
            invocation=flow.invocation, key=deployment.key, arrived=now, deadline=deadline, tasks=[]
        )

    def record(self, instance: Instance, now: float) -> None:
        """A task of it was queued: begin its trace."""
        trace = TaskTrace(instance.program.name, instance.tag, instance.attempt + 1, now)
        instance.trace = trace
        if len(self.trace.tasks) < LIMIT:
            self.trace.tasks.append(trace)
        else:
            self.trace.dropped += 1

    @property
    def is_gone(self) -> bool:
        """Whether nothing refers to it any more."""
        return self.finished and self.released and not self.running
