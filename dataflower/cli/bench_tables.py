"""A report of `dataflower bench` as tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from dataflower.loadgen.compare import Change, Comparison
from dataflower.loadgen.report import Outcome, Report, Row
from dataflower.loadgen.split import ENGINE, Part

_TITLES = {
    "e2e_ms": "e2e",
    "ttft_ms": "time to first item (ttft)",
    "itl_ms": "between items (itl)",
    "tpot_ms": "mean per item (tpot)",
    "send_lag_ms": "send lag",
}
_STYLES = {Outcome.MET: "green", Outcome.MISSED: "bold red", Outcome.UNPROVEN: "bold yellow", Outcome.NONE: ""}


def summary(report: Report) -> Iterator[RenderableType]:
    """What a person wants to know, in order."""
    yield _load(report)
    if report.metrics:
        yield _latencies(report)
    if report.whole is not None and report.traced:
        yield _parts(report)
    if report.faults:
        yield _faults(report)
    if report.sweep is not None:
        yield _sweep(report)
    for note in _notes(report):
        yield Text(note, style="dim")


def _notes(report: Report) -> Iterator[str]:
    yield from report.notes
    if report.cost is not None:
        each = (
            "none was good" if report.cost.per_1000_good is None else f"{report.cost.per_1000_good:.4g} per 1,000 good"
        )
        cost = report.cost
        yield f"cost: {cost.machines:g} x {cost.device} at {cost.price_per_hour:g} an hour: {each} requests"


def _load(report: Report) -> Text:
    settings, counts, rates = report.settings, report.counts, report.rates
    text = Text()
    text.append(f"{settings.workflow}@{settings.version}", style="bold")
    text.append(f" on {settings.server} over {settings.protocol}: {settings.arrivals}, seed {settings.seed}\n")
    text.append(f"{counts.measured} requests in {settings.duration_s:g} s: {counts.ok} answered")
    for number, what in (
        (counts.refused, "refused"),
        (counts.failed, "failed"),
        (counts.unfinished, "cut off at the end"),
        (counts.unsent, "not sent"),
    ):
        if number:
            text.append(f", {number} {what}", style="red")
    text.append(f"\noffered {rates.offered_per_s:.2f}/s, answered {rates.ok_per_s:.2f}/s")
    if report.limits is not None:
        text.append(f", goodput {rates.goodput_per_s:.2f}/s (within the SLO)")
    return text


def _table(*columns: str, left: int = 1) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right", no_wrap=True)
    return table


def _latencies(report: Report) -> Table:
    limits = report.limits
    table = _table("ms", "avg", "p50", "p90", "p95", "p99", "max", "std", "limit")
    for name, title in _TITLES.items():
        found = report.metrics.get(name)
        if found is None:
            continue
        limit = getattr(limits, name, None) if limits is not None else None
        values = (found.avg, found.p50, found.p90, found.p95, found.p99, found.max, found.std)
        table.add_row(title, *(f"{v:.1f}" for v in values), "" if limit is None else f"{limit:g}")
    return table


def _parts(report: Report) -> Table:
    assert report.whole is not None
    rows = [_cells(row) for row in (report.whole, *report.stages)]
    used = [i for i in range(len(_COLUMNS)) if i < _ALWAYS or any(row[i] for row in rows)]
    table = _table(*(_COLUMNS[i] for i in used))
    for row in rows:
        table.add_row(*(row[i] for i in used))
    table.caption = (
        "times in ms, parts are means; overhead is what is neither queue, batch nor compute (transfer, matching, front "
        "door); parts of e2e: what any of its tasks was doing"
    )
    table.caption_justify = "left"
    table.caption_style = "dim"
    return table


_COLUMNS = (
    *("stage", "per s", "p50", "p99", "queue", "batch", "compute", "transfer", "engine", "overhead"),
    *("budget", "kept", "good/s", "replicas", "size"),
)
_ALWAYS = 10
"""The columns after these are left out where there is nothing in them."""


def _cells(row: Row) -> list[str]:
    def ms(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    parts = row.parts_ms
    engine = parts[ENGINE] + parts.get("door", 0.0) if ENGINE in parts else None
    return [
        row.stage or "e2e",
        f"{row.tasks_per_s:.1f}",
        f"{row.latency_ms.p50:.1f}",
        f"{row.latency_ms.p99:.1f}",
        *(ms(parts.get(part)) for part in (Part.QUEUE, Part.BATCH, Part.COMPUTE, Part.TRANSFER)),
        ms(engine),
        ms(row.overhead_ms),
        "" if row.budget_ms is None else f"{row.budget_ms:g}",
        "" if row.attainment is None else f"{row.attainment:.1%}",
        "" if row.goodput_per_s is None else f"{row.goodput_per_s:.1f}",
        "" if row.replicas is None else f"{row.replicas:.1f}",
        "" if row.batch is None else f"{row.batch:.1f}",
    ]


def _faults(report: Report) -> Table:
    table = _table("count", "code", "error", "stage", "message", left=5)
    for fault in report.faults:
        table.add_row(str(fault.count), fault.code, fault.kind, fault.stage, fault.message.splitlines()[0][:80])
    return table


def _sweep(report: Report) -> Table:
    sweep = report.sweep
    assert sweep is not None
    table = _table("rate", "run", "verdict", "attainment", "goodput/s", "p50 ms", "p99 ms", "refused", "lag p99 ms")
    for point in sorted(sweep.points, key=lambda p: (p.rate, p.repeat)):
        table.add_row(
            f"{point.rate:.4g}",
            str(point.repeat + 1),
            Text(point.outcome.value, style=_STYLES[point.outcome]),
            "" if point.attainment is None else f"{point.attainment:.2%}",
            f"{point.goodput_per_s:.2f}",
            *("" if v is None else f"{v:.1f}" for v in (point.p50_ms, point.p99_ms)),
            str(point.refused),
            "" if point.lag_p99_ms is None else f"{point.lag_p99_ms:.1f}",
        )
    table.caption = sweep.rule
    table.caption_justify = "left"
    table.caption_style = "dim"
    return table


def verdict_line(report: Report) -> Text:
    """The last line: whether the SLO held."""
    verdict, limits = report.verdict, report.limits
    text = Text()
    if report.sweep is not None:
        best, missed = report.sweep.best_rate, report.sweep.first_missed
        text.append("highest rate within the SLO: ", style="bold")
        text.append("none" if best is None else f"{best:.4g}/s", style="bold red" if best is None else "bold green")
        if missed is not None:
            text.append(f" (missed at {missed:.4g}/s)")
        if report.sweep.limited_by:
            text.append(f"; {report.sweep.limited_by}", style="yellow")
        return text
    if limits is not None and verdict.attainment is not None:
        promised = ", ".join(
            f"{name} {value:g} ms"
            for name in ("e2e", "ttft", "itl", "tpot")
            if (value := getattr(limits, f"{name}_ms")) is not None
        )
        text.append("SLO ", style="bold")
        text.append(verdict.outcome.value.upper(), style=_STYLES[verdict.outcome])
        text.append(f": {verdict.attainment:.2%} of the requests kept {promised}; {limits.target:.2%} must")
        if report.counts.refused and verdict.attainment_accepted is not None:
            text.append(f" ({verdict.attainment_accepted:.2%} of those that were not refused)")
    elif limits is None:
        text.append("no SLO in the workflow and none given (--slo e2e=400ms): nothing to judge")
    else:
        text.append("SLO UNPROVEN", style=_STYLES[Outcome.UNPROVEN])
    for reason in verdict.reasons:
        text.append(f"\n{reason}", style="yellow")
    return text


def comparison_table(found: Comparison, files: tuple[Path, Path]) -> Table:
    """Every figure with its difference and interval."""
    table = _table("figure", files[0].name, files[1].name, "difference", "95 % interval", "", left=1)
    styles = {Change.BETTER: "green", Change.WORSE: "red", Change.UNCLEAR: "dim"}
    for row in found.differences:
        percent = f" ({row.difference.value / row.a:+.1%})" if row.a else ""
        table.add_row(
            row.figure,
            f"{row.a:.4g}",
            f"{row.b:.4g}",
            f"{row.difference.value:+.4g}{percent}",
            f"{row.difference.low:+.4g} to {row.difference.high:+.4g}",
            Text(row.change.value, style=styles[row.change]),
        )
    return table
