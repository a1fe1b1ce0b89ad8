"""Two control-flow orchestrators: a step starts when the steps before it have ended, and somebody says so.

`central`: a state machine walks the graph, writes each change of state to the store before it acts on it, and all
intermediate results go through the store on its machine. `worker`: the worker's own engine starts the next step (as in
FaaSFlow, ASPLOS 2022), keeps its state in memory, and intermediate results stay in memory on this machine. Both are our
own minimal versions, written to be quick: warm containers, no polling, no network between master and worker.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import redis.asyncio

from bench.baseline.store import Address
from bench.baseline.stored import FAR
from bench.baseline.workloads import Benchmark, Step
from bench.engine import ROOT
from dataflower import wire
from dataflower.testing.container_driver import ContainerDriver, ZygoteDriver

MOST_CONNECTIONS = 1000


class Kind(enum.Enum):
    """Who leads."""

    CENTRAL = "central"
    WORKER = "worker"


class StepFailed(Exception):
    """A function raised."""


class Pool:
    """The warm containers of one step, and who waits for them, first come first served."""

    def __init__(self, containers: list[ContainerDriver]) -> None:
        self._idle: asyncio.Queue[ContainerDriver] = asyncio.Queue()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        loop = asyncio.get_running_loop()
        for container in containers:
            self._idle.put_nowait(container)
            loop.add_reader(container.tasks.fileno(), self._receive, container)

    async def run(self, call: Mapping[str, Any]) -> Any:
        """One task; gives what it returned."""
        container = await self._idle.get()
        done = self._waiting[container.number] = asyncio.get_running_loop().create_future()
        container.run({"call": dict(call)})
        try:
            return await done
        finally:
            self._idle.put_nowait(container)

    def _receive(self, container: ContainerDriver) -> None:
        message = container.receive()
        waiting = self._waiting.pop(container.number)
        if isinstance(message, wire.TaskDone):
            waiting.set_result(container.decode(message.outputs["out"]))
        else:
            waiting.set_exception(StepFailed(str(message)))


class Orchestrator:
    """One workflow under control flow. `async with`: its containers run and are warm inside."""

    def __init__(
        self,
        kind: Kind,
        benchmark: Benchmark,
        zygote: ZygoteDriver,
        stores: tuple[Address, Address],
        scale: float,
        *,
        hosts: int = 1,
    ) -> None:
        """Its containers are forked from `zygote`; `stores`: on this machine, and on another. `central` uses the second
        for everything; `worker`, on several `hosts`, for what is read on another one. Its containers send to it as fast
        as they may, and no faster.
        """
        self._hosts = hosts
        self._zygote = zygote
        self._kind = kind
        self._benchmark = benchmark
        self._addresses = stores
        self._scale = scale
        self._requests = itertools.count(1)
        self._pools: dict[str, Pool] = {}
        self._containers: list[ContainerDriver] = []
        self._cleaning: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory()
        self._near, self._far = [
            redis.asyncio.Redis(**address.options(), max_connections=MOST_CONNECTIONS) for address in self._addresses
        ]
        for step in self._benchmark.steps:
            self._pools[step.name] = Pool([self._container(step, i) for i in range(step.replicas)])
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*self._cleaning)
        await self._near.aclose()
        await self._far.aclose()
        loop = asyncio.get_running_loop()
        for container in self._containers:
            loop.remove_reader(container.tasks.fileno())
            container.close()
        self._folder.cleanup()

    async def invoke(self) -> int:
        """Run it once; gives the size of the result, which has come out of the store."""
        request = f"{self._benchmark.name}/{next(self._requests)}"
        ended = {step.name: asyncio.get_running_loop().create_future() for step in self._benchmark.steps}
        async with asyncio.TaskGroup() as steps:
            for step in self._benchmark.steps:
                steps.create_task(self._run(request, step, ended))
        key = ended[self._benchmark.steps[-1].name].result()
        result = await (self._far if key.startswith(FAR) else self._near).get(key)
        cleaning = asyncio.create_task(self._forget(request, [future.result() for future in ended.values()]))
        self._cleaning.add(cleaning)
        cleaning.add_done_callback(self._cleaning.discard)
        return len(result)

    async def _run(self, request: str, step: Step, ended: Mapping[str, asyncio.Future[Any]]) -> None:
        """A step, from the end of those before it to its own end."""
        sources: list[Any] = []
        each = None
        for text in step.inputs:
            how, _, name = text.rpartition(" ")
            sources.append(await ended[name])
            if how == "each":
                each = len(sources) - 1
        await self._note(request, step.name, "running")
        pool, prefix = self._pools[step.name], f"{request}/{step.name}"
        if not sources:
            sources = [{"value": request}]
        if each is None:
            result = await pool.run({"prefix": prefix, "inputs": sources})
        else:
            calls = [
                {"prefix": f"{prefix}/{i}", "inputs": [*sources[:each], part, *sources[each + 1 :]]}
                for i, part in enumerate(sources[each])
            ]
            result = list(await asyncio.gather(*(pool.run(call) for call in calls)))
        await self._note(request, step.name, "ended")
        ended[step.name].set_result(result)

    async def _note(self, request: str, step: str, state: str) -> None:
        """A central state machine outlives its process: what it knows is in the store before it goes on."""
        if self._kind is Kind.CENTRAL:
            await self._far.hset(f"{FAR}{request}", step, state)

    async def _forget(self, request: str, results: list[Any]) -> None:
        """Free what the request has left behind."""
        keys = [f"{FAR}{request}"]
        for result in results:
            keys += result if isinstance(result, list) else [result]
        far = [key for key in keys if key.startswith(FAR)]
        if near := [key for key in keys if not key.startswith(FAR)]:
            await self._near.unlink(*near)
        await self._far.unlink(*far)

    def _container(self, step: Step, number: int) -> ContainerDriver:
        limited = self._kind is Kind.CENTRAL or (self._hosts > 1 and self._benchmark.crosses(step, self._hosts))
        params = {
            "function": step.function,
            "constants": step.params(self._scale),
            "address": self._addresses[0].options(),
            "far": self._addresses[1].options(),
            "bandwidth": step.bandwidth if limited else 0.0,
        }
        log = Path(self._folder.name) / f"{step.name}-{number}.log"
        function = "bench.baseline.stored:Stored"
        made = self._zygote.start(function, log, params=params, code_path=(str(ROOT),), stage=step.name)
        self._containers.append(made)
        return made
