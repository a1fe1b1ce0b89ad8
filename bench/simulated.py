"""Do plans keep their SLO in the simulator, and how fast does it play a fleet that this machine can't hold?

The simulator drives the core that runs in production; a batch takes as long as a full one. `--profiles DIR` takes the
measured tables of `bench.planner`; without it profiles are synthetic.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from random import Random

from bench.planner import Workload, grid, solve, sources
from bench.report import Report, finish
from dataflower.core.plan import DispatchPlan, GroupPlan, StageDispatch
from dataflower.errors import InvalidArgument
from dataflower.planner import Application, Billing, Module, Options
from dataflower.planner.dispatch import dispatch_of
from dataflower.planner.document import document_of
from dataflower.planner.options import Arrivals
from dataflower.planner.simulate import Figures, Simulated, Simulation, planned, simulate
from dataflower.planner.synthetic import workflow_of

PACED = Options(billing=Billing.INTEGER, pack=False)
POISSON = replace(PACED, arrivals=Arrivals.POISSON)
PERCENTILE = 0.99

WORKFLOWS, STAGES, MACHINES = 20, 5, 10
"""The fleet: 100 stages with 10 machines each."""
BATCH, BATCH_S, LOAD = 4, 40.0, 0.8
"""Work as heavy as video or long texts: four tasks in 40 s, machines busy four fifths of the time."""
DAY_S = 86_400.0


def measure(report: Report, *, quick: bool, profiles: Path | None = None, seconds: float = 100.0) -> None:
    """Add the figures. `profiles`: folder with measured tables, as for `bench.planner`; `seconds` for each share."""
    workloads = list(grid(sources(profiles), quick))
    seconds = 1.0 if quick else seconds
    level = list(map(_level, workloads))
    for key, question, works, options, count in (
        ("holds_paced", "plans for evenly spaced requests that hold, share", level, PACED, 400),
        ("holds_poisson", "plans for the 99th percentile that hold under Poisson, share", workloads, POISSON, 1500),
    ):
        held = list(_held(works, options, count, seconds))
        value = sum(held) / len(held) if held else None
        report.add(key, f"{question} (of {len(held)})", value, at_least=0.99, missing="no plan was feasible")
    held = list(_held(workloads, PACED, 400, seconds))
    share = sum(held) / len(held) if held else None
    question = "the same with fan-outs, the requests of an invocation at once"
    report.add(
        "holds_paced_fanout", f"{question} (of {len(held)})", share, at_least=0.99, missing="no plan was feasible"
    )
    costs = list(_dearer(workloads, seconds))
    mean = sum(costs) / len(costs) if costs else None
    report.add(
        "fanout_cost", "what that costs over plans for evenly spaced requests", mean, missing="no plan was feasible"
    )
    speed, tasks_s = fleet(4 * 60.0 if quick else 2 * 3600.0)
    report.add("fleet_speed", "seconds of a fleet of 100 stages and 1,000 machines in one second", speed)
    report.add("fleet_tasks_s", "tasks that this is, a second", tasks_s)
    report.add("fleet_day_min", "a day of it at that speed", DAY_S / speed / 60, unit="min")


def _level(work: Workload) -> Workload:
    """The workload with one request of each module for an invocation: what the paced model assumes."""
    modules = tuple(replace(module, factor=1.0) for module in work.application.modules)
    return replace(work, application=replace(work.application, modules=modules))


def _held(workloads: list[Workload], options: Options, count: int, seconds: float) -> Iterator[bool]:
    """Plan and play one workload after the other, spread over the grid, until the time is up."""
    end = time.perf_counter() + seconds
    for seed in Random(0).sample(range(len(workloads)), len(workloads)):
        if time.perf_counter() > end:
            return
        work = workloads[seed]
        figures = play(work, options, arrivals(work.rate, count, None if options is PACED else seed))
        if figures is not None:
            yield figures.within(work.slo_s) >= (1.0 if options is PACED else PERCENTILE)


def _dearer(workloads: list[Workload], seconds: float) -> Iterator[float]:
    """Cost of paced plans over that of plans which take requests for evenly spaced, until the time is up."""
    end = time.perf_counter() + seconds
    for seed in Random(1).sample(range(len(workloads)), len(workloads)):
        if time.perf_counter() > end:
            return
        found, even = (solve(workloads[seed], replace(PACED, bursts=bursts)) for bursts in (True, False))
        if found is not None and even is not None:
            yield found.cost / even.cost


def play(work: Workload, options: Options, times: list[float]) -> Figures | None:
    """What becomes of these arrivals under the plan; None if there is none, or the graph can't be simulated."""
    found = solve(work, options)
    if found is None:
        return None
    try:
        synthetic = workflow_of(work.application)
    except InvalidArgument:
        return None
    plan = dispatch_of(document_of(found, options), synthetic.workflow, admission=False)
    return simulate(Simulated(synthetic.workflow, planned(plan), plan, synthetic.items), times)


def arrivals(rate: float, count: int, seed: int | None) -> list[float]:
    """Evenly spaced, or Poisson with a seed."""
    if seed is None:
        return [n / rate for n in range(count)]
    random = Random(seed)
    return list(accumulate(random.expovariate(rate) for _ in range(count)))


def fleet(horizon_s: float) -> tuple[float, float]:
    """Play the fleet under Poisson traffic; simulated seconds, and tasks, for a second of this machine's."""
    names = [f"s{n}" for n in range(STAGES)]
    edges = tuple(pairwise(names))
    synthetic = workflow_of(Application("fleet", tuple(Module(name, name) for name in names), edges))
    rate = LOAD * MACHINES * BATCH / BATCH_S
    worst = BATCH_S + (BATCH - 1) / rate + BATCH_S / 2
    stages = tuple(
        StageDispatch(name, (GroupPlan(BATCH, MACHINES, BATCH_S, rate),), n * worst, worst)
        for n, name in enumerate(names, 1)
    )
    plan = DispatchPlan(1.2 * STAGES * worst, rate, stages)
    given = Simulated(synthetic.workflow, planned(plan), plan)
    simulation = Simulation({f"fleet{n}@1": given for n in range(WORKFLOWS)})
    gc.collect()
    gc.freeze()
    gc.disable()
    begun = time.process_time()
    try:
        figures = simulation.run(_traffic(rate, horizon_s))
    finally:
        gc.enable()
        gc.unfreeze()
    took = time.process_time() - begun
    return figures.ended_s / took, sum(stage.tasks for stage in figures.stages.values()) / took


def _traffic(rate: float, horizon_s: float) -> Iterator[tuple[float, str]]:
    """Poisson arrivals of all workflows, in order."""
    random = Random(1)
    coming = [(random.expovariate(rate), f"fleet{n}@1") for n in range(WORKFLOWS)]
    heapq.heapify(coming)
    while coming[0][0] <= horizon_s:
        at, key = coming[0]
        yield at, key
        heapq.heapreplace(coming, (at + random.expovariate(rate), key))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer plans, under 30 s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--profiles", type=Path, metavar="DIR", help="folder with measured tables")
    options = parser.parse_args()
    report = Report("simulated")
    measure(report, quick=options.quick, profiles=options.profiles)
    finish(report, options)


if __name__ == "__main__":
    main()
