"""From a measurement to a report: pure."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from dataflower.core import verdict as one
from dataflower.core.trace import InvocationTrace
from dataflower.loadgen import split
from dataflower.loadgen.measure import SLOWEST, Measurement
from dataflower.loadgen.messages import REFUSED, UNFINISHED, Sample
from dataflower.loadgen.report import (
    Columns,
    Cost,
    Counts,
    Fault,
    Limits,
    Outcome,
    Rates,
    Report,
    Row,
    Settings,
    Slow,
    Verdict,
)
from dataflower.loadgen.statistics import Distribution, distribution, percentile
from dataflower.loadgen.timeline import timeline
from dataflower.spec.workflow import Slo

LAG_FLOOR_S = 0.005
LAG_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Request:
    """A measured sample, held against the limits. Times in milliseconds."""

    sample: Sample
    latency_ms: float
    ttft_ms: float | None
    itl_ms: float | None
    tpot_ms: float | None
    good: bool


@dataclass(frozen=True, slots=True)
class Terms:
    """What a report needs besides the measurement.

    Attributes:
        settings: what was asked for.
        slo: the promise, if any.
        budgets_ms: stage -> its share of the SLO.
        device: (name, machines, price for an hour), if prices are known.
        target: the share of requests that must keep the promise, instead of what the promise says.
    """

    settings: Settings
    slo: Slo | None = None
    budgets_ms: Mapping[str, float] = field(default_factory=dict)
    device: tuple[str, float, float] | None = None
    target: float | None = None


def limits_of(slo: Slo | None, target: float | None = None) -> Limits | None:
    """The limits, and the share of requests that must keep them: `target` if given.

    Else, as `percentile: 95` already says that 5 % may be later, the smaller of that and `attainment`.
    """
    if slo is None:
        return None
    target = target or min(slo.attainment, slo.percentile / 100)
    return Limits(target, slo.e2e_ms, slo.ttft_ms, slo.itl_ms, slo.tpot_ms, slo.percentile)


def assess(found: Measurement, terms: Terms) -> Report:
    """The report of one measurement."""
    settings, schedule = terms.settings, found.schedule
    requests = [_request(s, terms.slo) for s in found.samples if s.scheduled >= schedule.warmup_s]
    counts = _counts(found, requests)
    window_s = _window_s(found)
    limits = limits_of(terms.slo, terms.target)
    rates = Rates(
        counts.measured / window_s if window_s else 0.0,
        counts.ok / window_s if window_s else 0.0,
        counts.good / window_s if window_s else 0.0,
    )
    traces = {r.sample.number: trace for r in requests if (trace := found.traces.get(r.sample.number)) is not None}
    return Report(
        settings=settings,
        started_at=datetime.datetime.fromtimestamp(found.begun_at, datetime.UTC).isoformat(timespec="seconds"),
        limits=limits,
        verdict=_verdict(found, requests, counts, limits, accepted_only=settings.accepted_only),
        counts=counts,
        rates=rates,
        metrics=_metrics(requests),
        whole=_whole(requests, traces, rates, counts, terms),
        stages=tuple(_stages(found, traces, terms, window_s)),
        faults=_faults(requests),
        timeline=timeline(found),
        slowest=_slowest(found, requests),
        requests=_columns(requests),
        cost=_cost(terms, counts, window_s),
        traced=len(traces),
        notes=tuple(_notes(found, counts, len(traces))),
    )


def _request(sample: Sample, slo: Slo | None) -> Request:
    streams = {str(i): times for i, times in enumerate(sample.streams)}
    asked = replace(slo or Slo(), e2e_ms=1e12, ttft_ms=1e12, itl_ms=1e12, tpot_ms=1e12)
    measured = {v.metric: v.measured_ms for v in one.judge(asked, sample.scheduled, sample.ended, streams)}
    kept = all(v.met for v in one.judge(slo, sample.scheduled, sample.ended, streams))
    return Request(
        sample,
        sample.latency_s * 1e3,
        measured["ttft_ms"] if sample.streams else None,
        measured["itl_ms"],
        measured["tpot_ms"],
        good=not sample.code and kept,
    )


def _window_s(found: Measurement) -> float:
    """Length of the measured part that took place."""
    end = found.schedule.end_s
    if found.interrupted or found.lost is not None:
        last = max((s.scheduled for s in found.samples), default=0.0)
        end = min(end, last if found.lost is None else found.lost)
    return max(0.0, end - found.schedule.warmup_s)


def _counts(found: Measurement, requests: Sequence[Request]) -> Counts:
    codes = Counter(r.sample.code for r in requests)
    return Counts(
        scheduled=len(found.schedule.times),
        warmup=len(found.samples) - len(requests),
        unsent=len(found.schedule.times) - len(found.samples),
        measured=len(requests),
        ok=codes[""],
        good=sum(r.good for r in requests),
        refused=codes[REFUSED],
        failed=sum(codes.values()) - codes[""] - codes[REFUSED] - codes[UNFINISHED],
        unfinished=codes[UNFINISHED],
    )


def _metrics(requests: Sequence[Request]) -> dict[str, Distribution]:
    answered = [r for r in requests if not r.sample.code]
    values = {
        "e2e_ms": [r.latency_ms for r in answered],
        "send_lag_ms": [lag_ms(r.sample) for r in requests],
        "ttft_ms": [r.ttft_ms for r in answered if r.ttft_ms is not None],
        "itl_ms": [(b - a) * 1e3 for r in answered for times in r.sample.streams for a, b in pairwise(times)],
        "tpot_ms": [r.tpot_ms for r in answered if r.tpot_ms is not None],
    }
    return {name: found for name, these in values.items() if (found := distribution(these)) is not None}


def lag_ms(sample: Sample) -> float:
    """How much later than scheduled it was sent."""
    return (sample.sent - sample.scheduled) * 1e3


def behind(requests: Sequence[Request], limits: Limits | None) -> str:
    """Why the load was not what was asked for; empty if it was.

    The generator fell behind if the 99th percentile of the send lag exceeds both `LAG_FLOOR_S` and `LAG_SHARE` of the
    e2e or ttft limit, whichever is shorter (without one: of the median latency).
    """
    if not requests:
        return ""
    lag = percentile([lag_ms(r.sample) for r in requests], 99)
    bounds = [] if limits is None else [x for x in (limits.e2e_ms, limits.ttft_ms) if x is not None]
    base = min(bounds) if bounds else percentile([r.latency_ms for r in requests], 50)
    allowed = max(LAG_FLOOR_S * 1e3, LAG_SHARE * base)
    if lag <= allowed:
        return ""
    return f"the generator fell behind: p99 of the send lag is {lag:.1f} ms, allowed are {allowed:.1f} ms"


def _verdict(
    found: Measurement, requests: Sequence[Request], counts: Counts, limits: Limits | None, *, accepted_only: bool
) -> Verdict:
    good = counts.good
    all_share = good / counts.measured if counts.measured else None
    accepted = counts.measured - counts.refused
    accepted_share = good / accepted if accepted else None
    reasons = []
    if found.lost is not None:
        reasons.append(f"the server went away after {found.lost:.1f} s")
    elif found.interrupted:
        reasons.append("the run was stopped before its end")
    elif counts.unsent:
        reasons.append(f"{counts.unsent} requests that were due were not sent")
    if said := behind(requests, limits):
        reasons.append(said)
    if not counts.measured:
        reasons.append("no request was measured")
    cut_short = found.lost is not None or found.interrupted
    if limits is None:
        return Verdict(Outcome.NONE, None, None, tuple(reasons), cut_short)
    share = accepted_share if accepted_only else all_share
    if share is not None and share < limits.target:
        outcome = Outcome.MISSED
    elif reasons or share is None:
        outcome = Outcome.UNPROVEN
    else:
        outcome = Outcome.MET
    return Verdict(outcome, all_share, accepted_share, tuple(reasons), cut_short)


def _faults(requests: Sequence[Request]) -> tuple[Fault, ...]:
    groups: dict[tuple[str, str, str], list[Sample]] = {}
    for sample in (r.sample for r in requests if r.sample.code):
        groups.setdefault((sample.code, sample.kind, sample.stage), []).append(sample)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return tuple(Fault(*key, len(samples), samples[0].message) for key, samples in ordered)


def _columns(requests: Sequence[Request]) -> Columns:
    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, 4)

    return Columns(
        [r.sample.number for r in requests],
        [round(r.sample.scheduled, 6) for r in requests],
        [round(lag_ms(r.sample), 4) for r in requests],
        [round(r.latency_ms, 4) for r in requests],
        [rounded(r.ttft_ms) for r in requests],
        [rounded(r.itl_ms) for r in requests],
        [rounded(r.tpot_ms) for r in requests],
        [r.sample.code for r in requests],
        [r.good for r in requests],
    )


def _cost(terms: Terms, counts: Counts, window_s: float) -> Cost | None:
    if terms.device is None:
        return None
    name, machines, price = terms.device
    spent = machines * price * window_s / 3600
    return Cost(name, machines, price, spent / counts.good * 1000 if counts.good else None)


def _whole(
    requests: Sequence[Request],
    traces: Mapping[int, InvocationTrace],
    rates: Rates,
    counts: Counts,
    terms: Terms,
) -> Row | None:
    answered = [r for r in requests if not r.sample.code]
    latency = distribution([r.latency_ms for r in answered])
    if latency is None:
        return None
    parts: dict[str, list[float]] = {}
    overheads: list[float] = []
    for request in answered:
        trace = traces.get(request.sample.number)
        found = split.of_invocation(trace) if trace is not None else {}
        if trace is None or not found:
            continue
        waited = (request.sample.ended - request.sample.sent) * 1e3
        mine = {part: seconds * 1e3 for part, seconds in found.items()}
        mine["door"] = max(0.0, waited - sum(mine.values()))
        mine["lag"] = lag_ms(request.sample)
        for part, value in mine.items():
            parts.setdefault(part, []).append(value)
        overheads.append(waited - sum(mine[part] for part in (split.Part.QUEUE, split.Part.BATCH, split.Part.COMPUTE)))
    return Row(
        "",
        latency,
        *_columns_of(parts),
        *_pair(overheads),
        budget_ms=None if terms.slo is None else terms.slo.e2e_ms,
        attainment=counts.good / counts.measured if terms.slo is not None and counts.measured else None,
        goodput_per_s=rates.goodput_per_s,
        tasks_per_s=rates.ok_per_s,
        errors=counts.failed,
    )


def _columns_of(parts: Mapping[str, Sequence[float]]) -> tuple[dict[str, float], dict[str, float]]:
    means = {str(part): sum(values) / len(values) for part, values in parts.items() if values}
    return means, {str(part): percentile(values, 99) for part, values in parts.items() if values}


def _pair(values: Sequence[float]) -> tuple[float, float]:
    return (sum(values) / len(values), percentile(values, 99)) if values else (0.0, 0.0)


def _stages(found: Measurement, traces: Mapping[int, InvocationTrace], terms: Terms, window_s: float) -> list[Row]:
    rows = []
    answered = sum(not s.code and s.scheduled >= found.schedule.warmup_s for s in found.samples)
    for stage, tasks in split.by_stage(traces.values()).items():
        times = [(task, seconds * 1e3) for task in tasks if (seconds := split.latency_s(task)) is not None]
        latency = distribution([ms for _, ms in times])
        if latency is None:
            continue
        parts: dict[str, list[float]] = {part: [] for part in split.Part}
        overheads = []
        for task, ms in times:
            mine = split.of_task(task)
            for part, seconds in mine.items():
                parts[part].append(seconds * 1e3)
            overheads.append(ms - 1e3 * (mine[split.Part.QUEUE] + mine[split.Part.BATCH] + mine[split.Part.COMPUTE]))
        budget = terms.budgets_ms.get(stage)
        share = None if budget is None else sum(ms <= budget for _, ms in times) / len(tasks)
        # record points are of a sample of the invocations: what they hold stands for all of them
        rate = len(times) / len(traces) * answered / window_s if traces and window_s else 0.0
        replicas = [s.idle + s.busy for p in found.pictures for s in p.stages if s.stage == stage]
        batches = [task.batch for task, _ in times if task.batch]
        rows.append(
            Row(
                stage,
                latency,
                *_columns_of(parts),
                *_pair(overheads),
                budget_ms=budget,
                attainment=share,
                goodput_per_s=None if share is None else rate * share * len(tasks) / len(times),
                tasks_per_s=rate,
                batch=sum(batches) / len(batches) if batches else None,
                cold=sum(task.cold for task in tasks),
                errors=sum(bool(task.error) for task in tasks),
                replicas=sum(replicas) / len(replicas) if replicas else None,
                replicas_max=max(replicas) if replicas else None,
            )
        )
    return rows


def _slowest(found: Measurement, requests: Sequence[Request]) -> tuple[Slow, ...]:
    answered = sorted((r for r in requests if not r.sample.code), key=lambda r: -r.latency_ms)
    return tuple(_slow(found, r) for r in answered[:SLOWEST])


def _slow(found: Measurement, request: Request) -> Slow:
    sample = request.sample
    trace = found.traces.get(sample.number)
    ident = found.ident(sample)
    slow = Slow(ident, sample.scheduled, request.latency_ms, lag_ms(sample), None)
    if trace is None:
        return slow

    def since(time: float) -> float | None:
        return round((time - trace.arrived) * 1e3, 3) if time else None

    tasks = tuple(
        {
            "stage": task.stage,
            "tag": list(task.tag),
            "attempt": task.attempt,
            "queued_ms": since(task.queued),
            "dispatched_ms": since(task.dispatched),
            "started_ms": since(task.started),
            "ended_ms": since(task.ended),
            "sent_ms": since(task.sent),
            "batch": task.batch,
            "batch_wait_ms": round(task.batch_wait_s * 1e3, 3),
            "error": task.error,
        }
        for task in trace.tasks
    )
    return Slow(
        ident,
        sample.scheduled,
        request.latency_ms,
        lag_ms(sample),
        deadline_ms=since(trace.deadline),
        tasks=tasks,
        server_ms=since(trace.finished),
    )


def _notes(found: Measurement, counts: Counts, traced: int) -> list[str]:
    warm = found.schedule.warmup_s
    notes = [f"the first {warm:g} s are warm-up: {counts.warmup} requests of them are in no figure"] if warm else []
    if traced and traced < counts.ok:
        notes.append(f"stages and their parts are from the record points of {traced} of {counts.ok} invocations")
    if found.missing_traces:
        notes.append(f"the server no longer had the record points of {found.missing_traces} invocations")
    return notes
