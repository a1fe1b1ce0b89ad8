"""Is our plan the cheapest, by how much, and how long does it take to find it?

A grid of workloads (five applications, rates, SLOs as multiples of the quickest run, seeds that pick models, fan-
outs and devices) is planned by every method. Ratios are means over the workloads that all of them can serve.
`--profiles DIR` takes measured tables (`profiles.csv`, `ppipe_blocks.csv`) and the prices of `bench.applications`;
without it the profiles are synthetic.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from rich.console import Console
from rich.table import Table

from bench.applications import APPLICATIONS, PPIPE, PRICES, PROTEUS, SYNTHETIC, Models, application, large
from bench.report import Report, finish, percentile
from dataflower.errors import ResourceExhausted
from dataflower.planner import (
    Application,
    Billing,
    Device,
    Dips,
    Dispatch,
    Kinds,
    Options,
    Plan,
    Point,
    Profile,
    Profiles,
    Splitter,
    parse_profiles,
    plan,
)
from dataflower.planner.baselines import BASELINES, HARPAGON, INFERLINE, OPTIMAL, OURS, SCROOGE

RATES = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
MULTIPLES = (1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
SEEDS = 6
RIVALS = ("clipper", "nexus", "inferline", "scrooge")
SAME = 1e-6

ABLATIONS: dict[str, Options] = {
    "ours": OURS,
    "ours, latency-cost split": replace(OURS, splitter=Splitter.LATENCY_COST),
    "ours, even split": replace(OURS, splitter=Splitter.EVEN),
    "ours, best single device": replace(OURS, kinds=Kinds.ONE),
    "ours, fastest device": replace(OURS, kinds=Kinds.FASTEST),
    "ours, cheapest device": replace(OURS, kinds=Kinds.CHEAPEST),
    "ours, no batching": replace(OURS, batching=False),
    **BASELINES,
    "harpagon, exact split": replace(HARPAGON, splitter=Splitter.EXACT),
    "harpagon, no dummies": replace(HARPAGON, dummy=False),
    "harpagon, no reassignment": replace(HARPAGON, reassign=0),
    "harpagon, no merger": replace(HARPAGON, merger=False),
    "harpagon, no cost-direct": replace(HARPAGON, cost_direct=False),
    "harpagon, two tuples": replace(HARPAGON, max_tuples=2),
    "harpagon, one tuple": replace(HARPAGON, max_tuples=1),
    "harpagon, 2d dispatch": replace(HARPAGON, dispatch=Dispatch.RR),
    "harpagon, throughput split": replace(HARPAGON, splitter=Splitter.THROUGHPUT, cost_direct=False),
    "clipper, fastest device": replace(BASELINES["clipper"], kinds=Kinds.FASTEST),
    "nexus, fastest device": replace(BASELINES["nexus"], kinds=Kinds.FASTEST),
    "inferline, 2d dispatch": replace(INFERLINE, dispatch=Dispatch.RR),
    "scrooge, throughput split": replace(SCROOGE, splitter=Splitter.THROUGHPUT),
    "inferline, 2d dispatch, fastest device": replace(INFERLINE, dispatch=Dispatch.RR, kinds=Kinds.FASTEST),
    "scrooge, throughput split, fastest device": replace(SCROOGE, splitter=Splitter.THROUGHPUT, kinds=Kinds.FASTEST),
    "clipper, fastest device, no batching": replace(BASELINES["clipper"], kinds=Kinds.FASTEST, batching=False),
    "harpagon, no batching": replace(HARPAGON, batching=False),
    "harpagon, fastest device": replace(HARPAGON, kinds=Kinds.FASTEST),
}


@dataclass(frozen=True, slots=True)
class Source:
    """Profiles with the models that may be picked from them."""

    name: str
    profiles: Profiles
    models: Models


@dataclass(frozen=True, slots=True)
class Workload:
    """One question to all planners."""

    source: str
    application: Application
    profiles: Profiles
    rate: float
    multiple: float
    slo_s: float


@dataclass
class Results:
    """Cost of each method on each workload (None where it has no plan), and what was counted on the way."""

    costs: dict[str, list[float | None]] = field(default_factory=dict)
    integer: dict[str, list[float | None]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    gave_up: int = 0

    def add(self, method: str, found: float | None, integer: float | None = None) -> None:
        self.costs.setdefault(method, []).append(found)
        self.integer.setdefault(method, []).append(integer)


def synthetic(seed: int) -> Profiles:
    """Two devices, every model with a fixed and a nearly linear part."""
    random = Random(seed)
    profiles = []
    for models in SYNTHETIC.values():
        for model in models:
            fixed, each = random.uniform(0.002, 0.02), random.uniform(0.0005, 0.006)
            for hardware, slower in (("fast", 1.0), ("cheap", random.uniform(3.0, 9.0))):
                points = (Point(b, slower**0.7 * fixed + slower * each * b**0.93) for b in (1, 2, 4, 8, 16, 32))
                profiles.append(Profile(model, hardware, tuple(points)))
    return Profiles(tuple(profiles), {name: Device(name, PRICES[name]) for name in ("fast", "cheap")})


def sources(folder: Path | None) -> list[Source]:
    """What each seed plans with, in turn."""
    if folder is None:
        return [Source(f"synthetic {i}", synthetic(i), SYNTHETIC) for i in range(SEEDS)]
    ppipe, proteus = "ppipe_blocks.csv", "profiles.csv"
    vision = (("V100", "T4"), ("V100", "P4", "T4", "L4"), ("V100", "P4"), ("T4", "L4"))
    found = [Source("+".join(d), read(folder / ppipe, PPIPE, d), PPIPE) for d in vision]
    onnx = ("onnxruntime_cpu", "onnxruntime_gpu_pascal")
    mixed = Source("cpu+pascal", read(folder / proteus, PROTEUS, onnx), PROTEUS)
    return [found[0], mixed, found[1], mixed, found[2], found[3]]


def read(path: Path, models: Models, devices: Sequence[str]) -> Profiles:
    """The rows of a table for these models and devices."""
    wanted = {model for names in models.values() for model in names}
    header, *rows = path.read_text().splitlines()
    kept = dict.fromkeys(row for row in rows if row.split(",")[1] in wanted)
    runs: dict[tuple[str, ...], str] = {}
    for row in kept:  # two runs of one setting: the first counts
        runs.setdefault(tuple(row.split(",")[:4]), row)
    known = {name: Device(name, PRICES[name]) for name in devices}
    text = "\n".join([header, *runs.values()])
    return Profiles(parse_profiles(text, path.name, known, only=devices, dips=Dips.MEND), known)


def grid(found: list[Source], quick: bool) -> Iterator[Workload]:
    """All workloads, seed by seed."""
    for seed in range(1 if quick else SEEDS):
        source = found[seed % len(found)]
        for name in APPLICATIONS:
            app = application(name, source.models, seed)
            least = quickest(app, source.profiles)
            for rate in RATES[1::2] if quick else RATES:
                for multiple in MULTIPLES[1::2] if quick else MULTIPLES:
                    yield Workload(source.name, app, source.profiles, rate, multiple, multiple * least)


def quickest(app: Application, profiles: Profiles) -> float:
    """Seconds of an invocation alone on the fastest devices."""
    return app.longest({m.name: min(c.duration_s for c in profiles.configurations(m.model)) for m in app.modules})


def solve(work: Workload, options: Options) -> Plan | None:
    """The plan, if there is one."""
    found = plan(work.application, work.profiles, work.rate, work.slo_s, options, explain=False)
    return found if isinstance(found, Plan) else None


def timed(work: Workload) -> tuple[float, Plan | None]:
    """Seconds of a core to find our plan, and the plan: what others do on the machine does not count."""
    start = time.process_time()
    found = solve(work, OURS)
    return time.process_time() - start, found


def measure(workloads: Sequence[Workload]) -> Results:
    """Every method on every workload."""
    results = Results()
    for work in workloads:
        seconds, ours = min((timed(work), timed(work)), key=lambda run: run[0])  # the other may have found cold caches
        results.seconds.append(seconds)
        results.add("ours", ours and ours.cost, ours and ours.integer_cost)
        for name, options in BASELINES.items():
            found = solve(work, options)
            results.add(name, found and found.cost, found and found.integer_cost)
        try:
            oracle = solve(work, OPTIMAL)
            results.add("optimal", oracle and oracle.cost)
        except ResourceExhausted:
            results.add("optimal", None)
            results.gave_up += 1
        whole = solve(work, replace(OURS, billing=Billing.INTEGER))
        results.add("ours integer", whole and whole.integer_cost, whole and whole.integer_cost)
    return results


def ratio(
    costs: Sequence[float | None], ours: Sequence[float | None], rows: Sequence[int] | None = None
) -> list[float]:
    """One over the other where both have a plan, or in the given rows."""
    pairs = [(costs[i], ours[i]) for i in (range(len(ours)) if rows is None else rows)]
    return [c / o for c, o in pairs if c is not None and o is not None]


def fill(report: Report, results: Results) -> None:
    """The figures about cost."""
    costs, ours = results.costs, results.costs["ours"]
    report.add("workloads", "workloads planned", len(ours), at_least=1131)
    oracle, harpagon = costs["optimal"], costs["harpagon"]
    known = [i for i, o in enumerate(oracle) if o is not None]
    optimal = [harpagon[i] is not None and harpagon[i] <= oracle[i] * (1 + SAME) for i in known]  # type: ignore[operator]
    report.add("harpagon_optimal", "share where Harpagon is the optimum of its model", statistics.fmean(optimal))
    near = [harpagon[i] is not None and harpagon[i] <= oracle[i] * 1.01 for i in known]  # type: ignore[operator]
    report.add("harpagon_within_1pct", "share where Harpagon is within 1 % of it", statistics.fmean(near))
    reached = [ours[i] is not None and ours[i] <= oracle[i] * (1 + SAME) for i in known]  # type: ignore[operator]
    report.add("ours_optimal", "share where ours is at most the oracle", statistics.fmean(reached), at_least=1.0)
    dearer = sum(r > 1 + SAME for r in ratio(ours, harpagon))
    report.add("ours_dearer", "ours dearer than Harpagon", dearer, at_most=0)
    every = [i for i in range(len(ours)) if all(costs[name][i] is not None for name in (*RIVALS, "harpagon", "ours"))]
    means = {name: statistics.fmean(ratio(costs[name], ours, every)) for name in RIVALS}
    report.add("baseline_min", "mean cost of the best rival over ours", min(means.values()), at_least=1.49)
    report.add("baseline_max", "mean cost of the worst rival over ours", max(means.values()), at_least=2.37)
    report.add("served_by_all", "workloads that every method can serve", len(every))
    report.add("oracle_finished", "workloads where the oracle finished with a plan", len(known))
    report.add("oracle_gave_up", "workloads with too many combinations for the oracle", results.gave_up)
    for name in (*RIVALS, "harpagon"):
        found = ratio(costs[name], ours, every)
        report.add(f"{name}_over_ours", f"mean cost of {name} over ours", statistics.fmean(found), samples=found)
    for name in (*RIVALS, "harpagon"):
        found = ratio(results.integer[name], results.integer["ours integer"], every)
        report.add(f"{name}_over_ours_integer", f"the same with whole machines, {name}", statistics.fmean(found))
    worse = sum(r > 1 + SAME for r in ratio(results.integer["ours integer"], results.integer["harpagon"]))
    report.add("ours_dearer_integer", "ours dearer than Harpagon with whole machines", worse)
    milliseconds = [s * 1000 for s in results.seconds]
    median = statistics.median(milliseconds)
    report.add(
        "plan_ms", "time to plan (the quicker of two), median", median, unit="ms", at_most=5, samples=milliseconds
    )
    report.add(
        "plan_ms_p99", "time to plan (the quicker of two), p99", percentile(milliseconds, 99), unit="ms", at_most=50
    )


def long_plan(source: Source, stages: int = 100) -> tuple[float, Plan | None]:
    """Seconds to plan an application of so many stages, and the plan."""
    app = large(stages, source.models, 1)
    work = Workload(source.name, app, source.profiles, 100.0, 3.0, 3 * quickest(app, source.profiles))
    start = time.process_time()
    found = solve(work, OURS)
    return time.process_time() - start, found


def by_group(title: str, keys: Sequence[object], results: Results) -> None:
    """Table of the mean ratios and feasible shares of each method for each value of a key."""
    table = Table(title=title, title_justify="left")
    names = (*RIVALS, "harpagon")
    for column in ("", "n", *names, "ours"):
        table.add_column(column, justify="right")
    for key in dict.fromkeys(keys):
        rows = [i for i, k in enumerate(keys) if k == key]
        cells = []
        for name in (*names, "ours"):
            found = ratio(results.costs[name], results.costs["ours"], rows)
            cells.append(f"{statistics.fmean(found):.2f} ({len(found) / len(rows):.0%})" if found else "-")
        table.add_row(str(key), str(len(rows)), *cells)
    Console().print(table)


def ablation(workloads: Sequence[Workload]) -> dict[str, tuple[float, float, int]]:
    """Mean and largest cost over ours of each setting on the workloads that ours can serve, and how many it serves."""
    reference = [solve(work, OURS) for work in workloads]
    table: dict[str, tuple[float, float, int]] = {}
    for name, options in ABLATIONS.items():
        plans = [(solve(work, options), best) for work, best in zip(workloads, reference, strict=True) if best]
        ratios = [p.cost / best.cost for p, best in plans if p]
        table[name] = (statistics.fmean(ratios), max(ratios), len(ratios)) if ratios else (float("nan"), 0.0, 0)
    return table


def show_ablation(found: Mapping[str, tuple[float, float, int]], of: int) -> None:
    """The ablation as a table."""
    table = Table(title=f"ablation: cost over ours where the setting has a plan ({of} workloads)", title_justify="left")
    for column in ("setting", "mean", "largest", "served"):
        table.add_column(column, justify="left" if column == "setting" else "right")
    for name, (mean, largest, served) in found.items():
        table.add_row(name, f"{mean:.3f}", f"{largest:.2f}", str(served))
    Console().print(table)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer workloads, under 30 s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--profiles", type=Path, metavar="DIR", help="folder with measured tables")
    parser.add_argument("--ablation", action="store_true", help="switch single parts off, on every eleventh workload")
    options = parser.parse_args()
    found = sources(options.profiles)
    workloads = list(grid(found, options.quick))
    results = measure(workloads)
    report = Report("planner")
    fill(report, results)
    seconds, long = long_plan(found[0])
    report.add("plan100_s", "time to plan 100 stages", seconds, unit="s", at_most=2)
    gap = None if long is None else long.cost / long.lower_bound - 1 if not long.exact else 0.0
    report.add("plan100_gap", "cost of that plan over its lower bound, less 1", gap)
    by_group("cost over ours, by SLO multiple (share served)", [w.multiple for w in workloads], results)
    by_group("cost over ours, by rate", [w.rate for w in workloads], results)
    by_group("cost over ours, by devices", [w.source for w in workloads], results)
    if options.ablation:
        subset = workloads[::11]
        rows = ablation(subset)
        show_ablation(rows, len(subset))
        for name, (mean, _, served) in rows.items():
            key = "ablation_" + name.replace(",", "").replace(" ", "_").replace("-", "_")
            report.add(
                key, f"cost over ours of {name}, mean (of {served})", mean if served else None, missing="no plan"
            )
    Console().print(f"seeds: 0 to {SEEDS - 1}; rates {RATES}; multiples {MULTIPLES}", style="dim")
    finish(report, options)


if __name__ == "__main__":
    main()
