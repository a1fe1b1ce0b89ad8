"""What `dataflower bench` shows while it runs: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from dataflower.cli.terminal import Terminal
from dataflower.loadgen.measure import Progress
from dataflower.loadgen.report import Report
from dataflower.loadgen.session import Load, Watch
from dataflower.loadgen.statistics import percentile

RECENT = 500
"""The figures shown are of so many requests."""
LINE_S = 10.0
"""In a log, a line so often."""


def watch(terminal: Terminal, load: Load, *, sweeping: bool) -> Watch:
    """For a terminal; silent if it is told to be quiet."""

    def report(rate: float, found: Report) -> None:
        share = found.verdict.attainment
        said = "" if share is None else f", attainment {share:.2%}"
        e2e = found.metrics.get("e2e_ms")
        p99 = "" if e2e is None else f", p99 {e2e.p99:.1f} ms"
        reasons = "".join(f" ({reason})" for reason in found.verdict.reasons)
        terminal.note(f"{rate:.4g}/s: {found.verdict.outcome.value}{said}{p99}{reasons}")

    if terminal.quiet:
        return Watch()
    shown = _bar if terminal.err().is_terminal else _lines
    return Watch(
        note=terminal.note, run=lambda title: shown(terminal, title), report=report if sweeping else Watch().report
    )


class _Recent:
    """The requests that ended last."""

    def __init__(self) -> None:
        self._latencies: deque[float] = deque(maxlen=RECENT)
        self._lags: deque[float] = deque(maxlen=RECENT)

    def said(self, progress: Progress) -> str:
        for sample in progress.recent:
            if not sample.code:
                self._latencies.append(sample.latency_s * 1e3)
            self._lags.append((sample.sent - sample.scheduled) * 1e3)
        parts = [f"{progress.sent} sent", f"{progress.sent - progress.done} in flight"]
        if progress.failed:
            parts.append(f"{progress.failed} failed")
        if self._latencies:
            parts.append(f"p50 {percentile(list(self._latencies), 50):.1f} ms")
            parts.append(f"p99 {percentile(list(self._latencies), 99):.1f} ms")
        parts.append(f"lag {percentile(list(self._lags), 99):.1f} ms" if self._lags else "")
        return ", ".join(part for part in parts if part)


@contextmanager
def _bar(terminal: Terminal, title: str) -> Iterator[Callable[[Progress], None]]:
    recent = _Recent()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"), TimeRemainingColumn())
    with Bar(*columns, console=terminal.err(), transient=True) as bar:
        task: TaskID = bar.add_task(title or "load", total=1.0, said="")

        def shown(progress: Progress) -> None:
            done = min(progress.elapsed_s, progress.total_s)
            bar.update(task, total=progress.total_s, completed=done, said=recent.said(progress))

        yield shown


@contextmanager
def _lines(terminal: Terminal, title: str) -> Iterator[Callable[[Progress], None]]:
    recent = _Recent()
    last = 0.0

    def shown(progress: Progress) -> None:
        nonlocal last
        said = recent.said(progress)
        if progress.elapsed_s >= last + LINE_S:
            last = progress.elapsed_s
            terminal.note(
                f"{title + ': ' if title else ''}{progress.elapsed_s:.0f} of {progress.total_s:.0f} s: {said}"
            )

    yield shown
