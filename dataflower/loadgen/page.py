"""The report as one HTML page: inline SVG, no scripts, nothing fetched. Opens offline, on light and dark screens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib import resources

from dataflower.loadgen.charts import budgets, cdf, sweep_plot, timeline, waterfall
from dataflower.loadgen.plot import number
from dataflower.loadgen.report import Report, Row
from dataflower.loadgen.split import ENGINE, Part

METRICS = {
    "e2e_ms": "end to end",
    "ttft_ms": "first item (ttft)",
    "itl_ms": "between items (itl)",
    "tpot_ms": "mean per item (tpot)",
    "send_lag_ms": "send lag",
}


def page(report: Report) -> str:
    """The whole document."""
    title = f"{report.settings.workflow}: bench of {report.started_at}"
    style = resources.files("dataflower.loadgen").joinpath("page.css").read_text(encoding="utf-8")
    body = "\n".join(_sections(report))
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _sections(report: Report) -> Iterator[str]:
    settings = report.settings
    yield f"<h1>{escape(settings.workflow)}@{settings.version}</h1>"
    senders = f"{settings.generators} generator process{'es' if settings.generators > 1 else ''}"
    yield (
        f'<p class="dim">{escape(settings.arrivals)}, seed {settings.seed}, {settings.duration_s:g} s after '
        f"{settings.warmup_s:g} s of warm-up, on {escape(settings.server)} over {escape(settings.protocol)}, "
        f"{senders}; {escape(report.started_at)}</p>"
    )
    yield _verdict(report)
    yield _tiles(report)
    if report.sweep is not None:
        yield "<h2>Sweep: the highest rate within the SLO</h2>" + sweep_plot(report)
        yield f'<p class="dim">{escape(report.sweep.rule)}.</p>'
    if report.metrics:
        yield "<h2>Latency</h2>" + _latencies(report)
        yield cdf(report)
    yield "<h2>Over time</h2>" + timeline(report)
    if report.whole is not None and report.traced:
        yield "<h2>Where the time goes: budget against actual</h2>" + budgets(report) + _stages(report)
    if any(slow.tasks for slow in report.slowest):
        yield "<h2>The slowest requests</h2>" + "".join(waterfall(slow) for slow in report.slowest if slow.tasks)
    if report.faults:
        yield "<h2>Errors</h2>" + _faults(report)
    yield _small_print(report)


def _verdict(report: Report) -> str:
    verdict, limits = report.verdict, report.limits
    lines = []
    if limits is not None and verdict.attainment is not None:
        promised = ", ".join(
            f"{name} {value:g} ms"
            for name in ("e2e", "ttft", "itl", "tpot")
            if (value := getattr(limits, f"{name}_ms")) is not None
        )
        lines.append(
            f"<b>SLO {escape(verdict.outcome.value)}</b>: {verdict.attainment:.2%} of the requests kept {promised}; "
            f"{limits.target:.2%} must"
        )
        if report.counts.refused and verdict.attainment_accepted is not None:
            lines.append(f"{verdict.attainment_accepted:.2%} of those that the server did not refuse")
    else:
        lines.append("No SLO was given: nothing to judge" if limits is None else "<b>SLO unproven</b>")
    if report.sweep is not None:
        best = report.sweep.best_rate
        lines.append(f"Highest rate within the SLO: {'none' if best is None else f'{best:.4g}/s'}")
    lines += [escape(reason) for reason in verdict.reasons]
    kind = verdict.outcome.value.replace(" ", "-")
    return f'<div class="verdict {kind}">' + "".join(f"<p>{line}</p>" for line in lines) + "</div>"


def _tiles(report: Report) -> str:
    counts, rates = report.counts, report.rates
    e2e = report.metrics.get("e2e_ms")
    tiles = [("requests", f"{counts.measured:,}"), ("offered /s", f"{rates.offered_per_s:.2f}")]
    tiles.append(("goodput /s" if report.limits else "answered /s", f"{rates.goodput_per_s:.2f}"))
    if e2e is not None:
        tiles += [("p50 ms", number(e2e.p50)), ("p99 ms", number(e2e.p99))]
    tiles += [("refused", f"{counts.refused:,}"), ("failed", f"{counts.failed + counts.unfinished:,}")]
    if (lag := report.metrics.get("send_lag_ms")) is not None:
        tiles.append(("send lag p99 ms", f"{lag.p99:.2f}"))
    if report.cost is not None and report.cost.per_1000_good is not None:
        tiles.append(("cost of 1,000 good", f"{report.cost.per_1000_good:.4g}"))
    return '<div class="tiles">' + "".join(f"<div><b>{b}</b><span>{a}</span></div>" for a, b in tiles) + "</div>"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1, message: bool = False) -> str:
    """`left`: so many columns are words; `message`: the last one is a sentence."""

    def cells(tag: str, row: Sequence[str]) -> str:
        found = []
        for i, cell in enumerate(row):
            kind = "left" if i < left else "message" if message and i == len(row) - 1 else ""
            found.append(f'<{tag} class="{kind}">{escape(cell)}</{tag}>' if kind else f"<{tag}>{escape(cell)}</{tag}>")
        return f"<tr>{''.join(found)}</tr>"

    body = "".join(cells("td", row) for row in rows)
    return f'<div class="wide"><table><thead>{cells("th", header)}</thead><tbody>{body}</tbody></table></div>'


def _latencies(report: Report) -> str:
    rows = []
    for name, title in METRICS.items():
        if (found := report.metrics.get(name)) is not None:
            limit = getattr(report.limits, name, None) if report.limits is not None else None
            values = (found.avg, found.p50, found.p90, found.p95, found.p99, found.max, found.std)
            rows.append([title, str(found.n), *(f"{v:.2f}" for v in values), "" if limit is None else f"{limit:g}"])
    return _table(("ms", "n", "avg", "p50", "p90", "p95", "p99", "max", "std", "limit"), rows)


def _stages(report: Report) -> str:
    assert report.whole is not None
    header = ("stage", "per s", "replicas", "p50", "p99", "budget", "in budget", "goodput/s")
    parts = ("queue", "batch", "compute", "transfer", "engine", "overhead", "batch size", "cold", "errors")
    columns = (*header, *parts)
    rows = [_stage_cells(row) for row in (report.whole, *report.stages)]
    used = [i for i in range(len(columns)) if any(row[i] not in ("", "0") for row in rows)]
    return _table([columns[i] for i in used], [[row[i] for i in used] for row in rows]) + (
        '<p class="dim">Milliseconds; parts are means. Overhead is what is neither queue, batch nor compute: transfer, '
        "matching, the front door. Of end to end, each moment counts for the first of compute, batch, queue and "
        "transfer that any task was in; engine is the rest.</p>"
    )


def _stage_cells(row: Row) -> list[str]:
    def shown(value: float | None, form: str = ".2f") -> str:
        return "" if value is None else format(value, form)

    engine = row.parts_ms[ENGINE] + row.parts_ms.get("door", 0.0) if ENGINE in row.parts_ms else None
    replicas = "" if row.replicas is None else f"{row.replicas:.1f} (max {row.replicas_max})"
    return [
        row.stage or "end to end",
        f"{row.tasks_per_s:.1f}",
        replicas,
        f"{row.latency_ms.p50:.1f}",
        f"{row.latency_ms.p99:.1f}",
        shown(row.budget_ms, "g"),
        shown(row.attainment, ".1%"),
        shown(row.goodput_per_s),
        *(shown(row.parts_ms.get(part)) for part in (Part.QUEUE, Part.BATCH, Part.COMPUTE, Part.TRANSFER)),
        shown(engine),
        shown(row.overhead_ms),
        shown(row.batch, ".1f"),
        str(row.cold),
        str(row.errors),
    ]


def _faults(report: Report) -> str:
    rows = [[str(f.count), f.code, f.kind, f.stage, f.message] for f in report.faults]
    return _table(("count", "code", "error", "stage", "message"), rows, left=4, message=True)


def _small_print(report: Report) -> str:
    words = [*report.notes]
    if report.cost is not None:
        cost = report.cost
        words.append(f"cost: {cost.machines:g} x {cost.device} at {cost.price_per_hour:g} an hour")
    words.append(", ".join(f"{name} {version}" for name, version in report.versions.items()))
    words.append(", ".join(f"{name} {value}" for name, value in report.machine.items()))
    if report.command:
        words.append(report.command)
    return '<h2>Notes</h2><p class="dim">' + "<br>".join(escape(word) for word in words if word) + "</p>"
