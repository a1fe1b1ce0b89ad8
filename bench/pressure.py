"""Does a stage on another host keep up whose outputs take longer to send than to make?

Functions of 20 ms, outputs of 500 KB, containers that may send 5 MB/s each (so 100 ms for a task), calls at a constant
distance that three containers can bear, in an open loop: the p99 from when each call was due, and how many containers
there were in the end, under each setting of `pressure`, in turns.
"""

from __future__ import annotations

import asyncio
import time
from argparse import Namespace
from contextlib import AsyncExitStack

import uvloop

from bench.engine import call, document, engine
from bench.report import Report, arguments, finish, percentile
from bench.second_host import NAME, TOKEN, second_host
from dataflower.core.pressure import Pressure
from dataflower.host.runtime import Runtime

LINK = "200mbit"
WORK_S = 0.02
GAP_S = 0.04
WORKFLOW = "sends"
REPLICAS = 5


def workflow() -> str:
    """One stage over there, whose output the caller gets."""
    rest = f"resources: {{host: {NAME}, bandwidth: 5MB}}, scaling: {{max_replicas: {REPLICAS}}}"
    given = "inputs: {seconds: inputs.seconds}, params: {nbytes: 500000}"
    line = f"  make: {{function: 'bench.functions:linger', {given}, {rest}}}"
    return document(WORKFLOW, "{seconds: {type: float}}", line, "{y: make.out}")


async def burst(host: Runtime, count: int) -> list[float]:
    """Seconds of each call from when it was due."""
    begin = time.perf_counter()
    taken: list[float] = []

    async def one(due: float) -> None:
        await asyncio.sleep(max(0.0, begin + due - time.perf_counter()))
        await call(host, WORKFLOW, {"seconds": WORK_S})
        taken.append(time.perf_counter() - begin - due)

    async with asyncio.TaskGroup() as calls:
        for turn in range(count):
            calls.create_task(one(turn * GAP_S))
    return taken


async def run(report: Report, options: Namespace) -> None:
    """All figures."""
    count, rounds = (60, 1) if options.quick else (150, 3)
    taken: dict[Pressure, list[float]] = {rule: [] for rule in Pressure}
    grown: dict[Pressure, int] = {}
    with second_host(link=LINK) as second:
        print(f"two hosts: {second.words}")
        async with AsyncExitStack() as stack:
            hosts = {}
            for rule in Pressure:
                settings = {"host_name": f"a-{rule}", "peers": (second.peer,), "peer_token": TOKEN, "pressure": rule}
                hosts[rule] = await stack.enter_async_context(engine(workflow(), **settings))
                await call(hosts[rule], WORKFLOW, {"seconds": WORK_S})
            for _ in range(rounds):
                for rule, host in hosts.items():
                    taken[rule] += await burst(host, count)
                    (stage,) = host.workflow(WORKFLOW).stages
                    grown[rule] = stage.idle + stage.busy + stage.starting
    for rule, samples in taken.items():
        late = [seconds * 1e3 for seconds in samples]
        report.add(f"pressure_p99_ms_{rule}", f"pressure: {rule}: p99", percentile(late, 99), unit="ms", samples=late)
        report.add(f"pressure_containers_{rule}", f"pressure: {rule}: containers", grown[rule])
    ours = percentile(taken[Pressure.MEASURED], 99)
    report.add("pressure_gain", "p99 of `off` over ours", percentile(taken[Pressure.OFF], 99) / ours)
    report.add(
        "pressure_over_paper", "p99 by the paper's formula over ours", percentile(taken[Pressure.PAPER], 99) / ours
    )


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "")
    report = Report("pressure")
    uvloop.run(run(report, options))
    finish(report, options)


if __name__ == "__main__":
    main()
