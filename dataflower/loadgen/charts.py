"""The plots of the report page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from dataflower.loadgen.plot import Axis, Plot, legend, number, span
from dataflower.loadgen.report import Outcome, Report, Row, Second, Slow
from dataflower.loadgen.split import ENGINE, Part

WIDTH = 1040.0
LEFT, RIGHT = 64.0, 1020.0
_CURVE = 300
_TASKS = 14
"""More tasks of a stage than this are one line of a waterfall."""
_SPREAD = 30.0
"""From this ratio of the largest to the smallest latency on, the axis is logarithmic."""


def cdf(report: Report) -> str:
    """Share of the answered requests that were no slower than this."""
    curves = {"end to end": report.requests.latency_ms}
    if any(v is not None for v in report.requests.ttft_ms):
        curves["first item"] = [v for v in report.requests.ttft_ms if v is not None]
    answered = [not code for code in report.requests.code]
    curves["end to end"] = [v for v, ok in zip(report.requests.latency_ms, answered, strict=True) if ok]
    values = sorted(v for found in curves.values() for v in found)
    if not values:
        return ""
    limit = report.limits.e2e_ms if report.limits is not None else None
    low, high = max(values[0], 1e-3), max(values[-1], limit or 0.0, 1e-2) * 1.05
    log = high / low > _SPREAD
    x = Axis(low if log else 0.0, high, LEFT, RIGHT, log)
    y = Axis(0.0, 1.0, 250.0, 24.0)
    plot = Plot(WIDTH, 296, "latency CDF")
    plot.frame(x, y, x_title="latency, ms" + (" (logarithmic)" if log else ""), y_text=lambda v: f"{v:.0%}")
    for i, found in enumerate(curves.values()):
        ordered = sorted(found)
        step = max(1, len(ordered) // _CURVE)
        tail = ordered[-max(1, len(ordered) // 50) :]  # every point of the slowest
        shown = [(v, (j + 1) / len(ordered)) for j, v in enumerate(ordered) if j % step == 0 or v >= tail[0]]
        plot.curve(x, y, [(ordered[0], 0.0), *shown], f"s{i}")
    if limit is not None:
        plot.line([(x.at(limit), y.start), (x.at(limit), y.end)], "limit", f"SLO {limit:g} ms")
        plot.text(x.at(limit) - 5, y.end + 32, f"SLO {limit:g} ms", "tick end")
        assert report.limits is not None
        at = y.at(report.limits.target)
        plot.line([(x.start, at), (x.end, at)], "limit", f"target {report.limits.target:.2%}")
    return plot.svg() + legend([(f"s{i}", name) for i, name in enumerate(curves)])


def timeline(report: Report) -> str:
    """Rate, latency and containers on one axis of time."""
    seconds = report.timeline
    end = seconds[-1].at_s + seconds[-1].length_s if seconds else 1.0
    x = Axis(0.0, end, LEFT, RIGHT)
    plot = Plot(WIDTH, 560, "rate, latency and replicas over time")
    panels = [Axis(0, 1, bottom, top) for bottom, top in ((160.0, 30.0), (340.0, 210.0), (512.0, 390.0))]
    if report.settings.warmup_s:
        width = x.at(report.settings.warmup_s) - x.start
        for panel in panels:
            plot.bar(x.start, panel.end, width, panel.start - panel.end, name="warm", hint="warm-up")
    _rates(plot, x, panels[0], seconds)
    _latencies(plot, x, panels[1], seconds, report.limits.e2e_ms if report.limits is not None else None)
    stages = _replicas(plot, x, panels[2], seconds)
    return plot.svg() + legend(
        [
            ("s0", "offered, p50"),
            ("s2", "answered"),
            ("s1", "refused or failed, p99"),
            ("s3", "send lag p99"),
            *((f"s{i % 7}", f"containers of {name}") for i, name in enumerate(stages)),
            ("s7", "queued tasks"),
        ]
    )


def _rates(plot: Plot, x: Axis, place: Axis, seconds: Sequence[Second]) -> None:
    y = Axis(*span(s.offered / s.length_s for s in seconds), place.start, place.end)
    plot.frame(x, y, y_title="requests a second", y_text=number)
    plot.curve(x, y, _steps(seconds, [s.offered / s.length_s for s in seconds]), "s0")
    plot.curve(x, y, _steps(seconds, [s.ok / s.length_s for s in seconds]), "s2 dash")
    if any(s.refused or s.failed for s in seconds):
        plot.curve(x, y, _steps(seconds, [(s.refused + s.failed) / s.length_s for s in seconds]), "s1")


def _latencies(plot: Plot, x: Axis, place: Axis, seconds: Sequence[Second], limit: float | None) -> None:
    y = Axis(*span([limit, *(s.p99_ms for s in seconds), *(s.lag_p99_ms for s in seconds)]), place.start, place.end)
    plot.frame(x, y, y_title="latency, ms", y_text=number)
    for name, values in (
        ("s3 dash", [s.lag_p99_ms for s in seconds]),
        ("s0", [s.p50_ms for s in seconds]),
        ("s1", [s.p99_ms for s in seconds]),
    ):
        middles = [(s.at_s + s.length_s / 2, v) for s, v in zip(seconds, values, strict=True) if v is not None]
        plot.curve(x, y, middles, name)
    if limit is not None:
        plot.line([(x.start, y.at(limit)), (x.end, y.at(limit))], "limit", f"SLO {limit:g} ms")


def _replicas(plot: Plot, x: Axis, place: Axis, seconds: Sequence[Second]) -> list[str]:
    known = [s for s in seconds if s.replicas]
    stages = sorted({stage for s in known for stage in s.replicas})
    top = [v for s in known for v in s.replicas.values()]
    y = Axis(*span(top), place.start, place.end)
    plot.frame(x, y, x_title="seconds", y_title="containers (left), queued tasks (to its own scale)", y_text=number)
    for i, stage in enumerate(stages):
        points = [(s.at_s + s.length_s / 2, s.replicas.get(stage, 0.0)) for s in known]
        plot.curve(x, y, points, f"s{i % 7}", stage)
    queue = Axis(*span(s.queued for s in known), place.start, place.end)
    plot.curve(x, queue, [(s.at_s + s.length_s / 2, s.queued) for s in known], "s7 dash", "queued tasks")
    if known:
        most = max(s.queued for s in known)
        plot.text(x.end, place.end - 8, f"most queued: {most:.0f}", "label end")
    return stages


def _steps(seconds: Sequence[Second], values: Sequence[float]) -> list[tuple[float, float]]:
    return [
        point
        for s, value in zip(seconds, values, strict=True)
        for point in ((s.at_s, value), (s.at_s + s.length_s, value))
    ]


def budgets(report: Report) -> str:
    """For each stage the parts of its mean latency, its p99 and its budget."""
    assert report.whole is not None
    rows = [report.whole, *report.stages]
    left = LEFT + 60
    x = Axis(*span([v for row in rows for v in (row.latency_ms.p99, row.budget_ms)], least=0.01), left, RIGHT)
    height = 30.0 + 34 * len(rows)
    plot = Plot(WIDTH, height + 44, "budget against actual")
    plot.frame(x, Axis(0, 1, height, 12.0), x_title="ms")
    for i, row in enumerate(rows):
        top = 16.0 + 34 * i
        plot.text(left - 8, top + 15, row.stage or "end to end", "end")
        _stacked(plot, x, top, row)
        at = x.at(row.latency_ms.p99)
        plot.line([(at, top - 3), (at, top + 25)], "thick", f"p99 {row.latency_ms.p99:.1f} ms")
        if row.budget_ms is not None:
            at = x.at(row.budget_ms)
            plot.line([(at, top - 3), (at, top + 25)], "budget", f"budget {row.budget_ms:g} ms")
    names = ("queue", "batch", "compute", "transfer")
    keys = [(name, name) for name in names] + [("engine", "engine and front door"), ("lag", "send lag")]
    return plot.svg() + legend([*keys, ("thick", "p99"), ("budget", "budget, or the SLO")])


def _stacked(plot: Plot, x: Axis, top: float, row: Row) -> None:
    parts = row.parts_ms
    stack = [("lag", parts.get("lag", 0.0))] + [(part.value, parts.get(part, 0.0)) for part in _ORDER]
    stack.append(("engine", parts.get(ENGINE, 0.0) + parts.get("door", 0.0)))
    at = 0.0
    for name, value in stack:
        plot.bar(x.at(at), top, x.at(at + value) - x.at(at), 22.0, name=name, hint=f"{name} {value:.2f} ms on average")
        at += value


_ORDER = (Part.QUEUE, Part.BATCH, Part.TRANSFER, Part.COMPUTE)


def waterfall(slow: Slow) -> str:
    """One slow request, a line for each task, or for each stage with many."""
    end = slow.server_ms or max((t["sent_ms"] or 0.0 for t in slow.tasks), default=1.0)
    lines = _lines(slow.tasks)
    left = LEFT + 100
    x = Axis(0.0, max(end, 0.01), left, RIGHT)
    height = 10.0 + 20 * len(lines)
    plot = Plot(WIDTH, height + 40, f"waterfall of {slow.invocation}")
    plot.frame(x, Axis(0, 1, height, 4.0), x_title="ms since the server had it")
    for i, (label, tasks) in enumerate(lines):
        top = 6.0 + 20 * i
        plot.text(left - 8, top + 12, label, "end")
        for task in tasks:
            _bars(plot, x, top, task, label)
    outside = "" if slow.server_ms is None else f", of which {slow.server_ms:.1f} ms in the server"
    lag = f", sent {slow.lag_ms:.1f} ms late" if slow.lag_ms >= 0.05 else ""
    title = f"{slow.latency_ms:.1f} ms{outside}{lag}; due at {slow.scheduled_s:.2f} s; {escape(slow.invocation)}"
    return f"<h3>{title}</h3>{plot.svg()}"


def _lines(tasks: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for task in tasks:
        stages.setdefault(task["stage"], []).append(task)
    found: list[tuple[str, list[Mapping[str, Any]]]] = []
    for stage, these in stages.items():
        if len(these) > _TASKS:
            found.append((f"{stage} x{len(these)}", these))
            continue
        for task in these:
            tag = f"[{','.join(map(str, task['tag']))}]" if task["tag"] else ""
            again = f" #{task['attempt']}" if task["attempt"] > 1 else ""
            found.append((f"{stage}{tag}{again}"[:24], [task]))
    return found


def _bars(plot: Plot, x: Axis, top: float, task: Mapping[str, Any], label: str) -> None:
    queued, dispatched = task["queued_ms"], task["dispatched_ms"]
    batched = None if dispatched is None else max(queued or 0.0, dispatched - task["batch_wait_ms"])
    size = f", one of {task['batch']}" if task["batch"] > 1 else ""
    for name, begin, end in (
        ("queue", queued, batched),
        ("batch", batched, dispatched),
        ("transfer", dispatched, task["started_ms"]),
        ("compute", task["started_ms"], task["ended_ms"]),
        ("transfer", task["ended_ms"], task["sent_ms"]),
    ):
        if begin is not None and end is not None:
            hint = f"{label}: {name} {end - begin:.2f} ms{size}"
            plot.bar(x.at(begin), top, x.at(end) - x.at(begin), 14.0, name=name, hint=hint)


def sweep_plot(report: Report) -> str:
    """p99 and attainment at each rate tried."""
    assert report.sweep is not None
    points = sorted(report.sweep.points, key=lambda p: (p.rate, p.repeat))
    rates = [p.rate for p in points]
    if not rates:
        return ""
    low, high = min(rates) * 0.9, max(rates) * 1.1
    x = Axis(low, high, LEFT, RIGHT, high / low > _SPREAD)
    plot = Plot(WIDTH, 356, "sweep")
    limit = report.limits.e2e_ms if report.limits is not None else None
    y = Axis(*span([limit, *(p.p99_ms for p in points)]), 150.0, 24.0)
    plot.frame(x, y, y_title="p99, ms", y_text=number)
    share = Axis(0.0, 1.0, 312.0, 196.0)
    plot.frame(x, share, x_title="requests a second", y_title="attainment", y_text=lambda v: f"{v:.0%}")
    colours = {Outcome.MET: "s2", Outcome.MISSED: "s1", Outcome.UNPROVEN: "s4", Outcome.NONE: "s7"}
    for point in points:
        at, name = x.at(point.rate), colours[point.outcome]
        hint = f"{point.rate:.4g}/s, run {point.repeat + 1}: {point.outcome.value}"
        if point.p99_ms is not None:
            plot.bar(at - 4, y.at(point.p99_ms) - 4, 8, 8, name=name, hint=f"{hint}, p99 {point.p99_ms:.1f} ms")
        if point.attainment is not None:
            plot.bar(
                at - 4,
                share.at(point.attainment) - 4,
                8,
                8,
                name=name,
                hint=f"{hint}, attainment {point.attainment:.2%}",
            )
    if limit is not None:
        plot.line([(x.start, y.at(limit)), (x.end, y.at(limit))], "limit", f"SLO {limit:g} ms")
    if report.limits is not None:
        at = share.at(report.limits.target)
        plot.line([(x.start, at), (x.end, at)], "limit", f"target {report.limits.target:.2%}")
    if (best := report.sweep.best_rate) is not None:
        plot.line([(x.at(best), 312.0), (x.at(best), 24.0)], "thick", f"highest within the SLO: {best:.4g}/s")
    return plot.svg() + legend(
        [("s2", "met"), ("s1", "missed"), ("s4", "unproven"), ("thick", "highest within the SLO")]
    )
