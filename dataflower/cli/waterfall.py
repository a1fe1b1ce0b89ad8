"""The timeline of an invocation as rows of text: pure, from record points to a rich renderable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from dataflower.core.trace import InvocationTrace, TaskTrace
from dataflower.wire import StartKind

FOLD = 6
"""A stage with more tasks than this becomes one row, unless all are asked for."""

POINTS = ("queued", "dispatched", "fetched", "started", "first_output", "last_output", "ended", "sent")

_WAITING, _FETCHING, _RUNNING, _STREAMING, _SENDING, _CUT_OFF = "·", "╌", "█", "▓", "╴", "▒"
_LEVELS = "▁▂▃▄▅▆▇█"
_COLUMNS: tuple[dict[str, str], ...] = (
    {
        "queued": "queued",
        "fetched": "fetched",
        "started": "started",
        "1st out": "first_output",
        "ended": "ended",
        "sent": "sent",
    },
    {"queued": "queued", "started": "started", "ended": "ended"},
    {"ended": "ended"},
)
"""Title -> point: as many of them as leave room for the bar."""
_NARROWEST, _WIDEST = 12, 72
_WHOLE = ("import", "setup")
_PARTS = tuple(kind.value for kind in StartKind)
"""Phases of a start, and those of its `setup`, as they come one after the other."""
_STYLES = {_WAITING: "dim", _FETCHING: "cyan", _RUNNING: "blue", _STREAMING: "green", _SENDING: "cyan"}


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the waterfall: one task, or all tasks of a stage folded into one.

    Times are CLOCK_MONOTONIC seconds, 0 where never reached; of folded tasks the earliest of each point up to
    `first_output` and the latest of `ended` and `sent`.
    """

    label: str
    tasks: tuple[TaskTrace, ...]
    queued: float
    fetched: float
    started: float
    first_output: float
    ended: float
    sent: float
    cold: int
    errors: int

    @property
    def folded(self) -> bool:
        """Whether it stands for more than one task."""
        return len(self.tasks) > 1


def rows(trace: InvocationTrace, fold: int = FOLD) -> list[Row]:
    """The waterfall's lines, by stage in the order in which stages first had something to do."""
    stages: dict[str, list[TaskTrace]] = {}
    for task in trace.tasks:
        stages.setdefault(task.stage, []).append(task)
    lines: list[Row] = []
    for stage, tasks in stages.items():
        if len(tasks) > fold:
            lines.append(_row(f"{stage} x{len(tasks)}", tasks))
        else:
            lines.extend(_row(_label(task), [task]) for task in tasks)
    return lines


def _label(task: TaskTrace) -> str:
    index = f"[{','.join(map(str, task.tag))}]" if task.tag else ""
    again = f" #{task.attempt}" if task.attempt > 1 else ""
    return f"{task.stage}{index}{again}"


def _row(label: str, tasks: Sequence[TaskTrace]) -> Row:
    return Row(
        label,
        tuple(tasks),
        queued=_first(t.queued for t in tasks),
        fetched=_first(t.fetched for t in tasks),
        started=_first(t.started for t in tasks),
        first_output=_first(t.first_output for t in tasks),
        ended=max(t.ended for t in tasks),
        sent=max(t.sent for t in tasks),
        cold=sum(t.cold for t in tasks),
        errors=sum(bool(t.error) for t in tasks),
    )


def _first(times: Iterable[float]) -> float:
    return min((t for t in times if t > 0), default=0.0)


def end_of(trace: InvocationTrace) -> float:
    """When the invocation was over, or the last thing known of it if it is not (CLOCK_MONOTONIC seconds)."""
    known: list[float] = [getattr(t, point) for t in trace.tasks for point in POINTS]
    return max([trace.finished or trace.arrived, *known])


def bar(row: Row, start: float, end: float, width: int) -> Text:
    """`width` cells between two times; folded rows show how many tasks ran at once as the height of the cell."""
    cells = _density(row, start, end, width) if row.folded else _phases(row.tasks[0], start, end, width)
    text = Text()
    for cell in cells:
        style = "red" if row.errors and cell not in " ·" else _STYLES.get(cell, "blue")
        text.append(cell, style=style)
    return text


def _phases(task: TaskTrace, start: float, end: float, width: int) -> list[str]:
    cells = [" "] * width
    handed = task.dispatched or task.started
    last = task.sent or task.ended or end
    begun = task.started or task.first_output
    for begin, stop, mark in (
        (task.queued, handed or last, _WAITING),
        (handed, begun or last, _FETCHING if begun else _CUT_OFF),  # when it began, a container says as it ends
        (begun, task.ended or last, _RUNNING),
        (task.first_output, task.ended or task.last_output, _STREAMING),
        (task.ended, task.sent, _SENDING),
    ):
        if not begin or not stop or stop < begin or (mark is _STREAMING and task.items < 2):
            continue
        first, past = min(_cell(begin, start, end, width), width - 1), _cell(stop, start, end, width)
        for i in range(first, max(past, first + (mark is _RUNNING))):
            cells[i] = mark
    return cells


def _cell(time: float, start: float, end: float, width: int) -> int:
    """The boundary between cells that is nearest to a time: 0 is the left edge, `width` the right one."""
    share = (time - start) / (end - start) if end > start else 0.0
    return min(width, max(0, round(share * width)))


def _density(row: Row, start: float, end: float, width: int) -> list[str]:
    running = [0] * width
    for task in row.tasks:
        if task.started:
            first = min(_cell(task.started, start, end, width), width - 1)
            for i in range(first, max(first + 1, _cell(task.ended or end, start, end, width))):
                running[i] += 1
    most = max(running)
    waiting = range(_cell(row.queued, start, end, width), width) if row.queued else range(0)
    last = _cell(row.sent or row.ended or end, start, end, width)
    return [
        _LEVELS[max(0, round(n / most * len(_LEVELS)) - 1)] if n else (_WAITING if i in waiting and i < last else " ")
        for i, n in enumerate(running)
    ]


@dataclass(frozen=True, slots=True)
class Waterfall:
    """Renders as a table: a bar and the record points of each line, in milliseconds since the invocation arrived.

    The bar takes what the terminal's width leaves; where that is too little, some of the points give way to it.
    """

    trace: InvocationTrace
    fold: int = FOLD

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay the table out for a width."""
        end = end_of(self.trace)
        lines = rows(self.trace, self.fold)
        labels = max([len("stage"), *(len(row.label) for row in lines)])
        marks = max([0, *(len(_marks(row)) for row in lines)])
        left = options.max_width - labels - marks - 3
        columns = next((some for some in _COLUMNS if left - 9 * len(some) >= _NARROWEST), {})
        width = min(max(left - 9 * len(columns), _NARROWEST), _WIDEST)
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
        table.add_column("stage", no_wrap=True, min_width=min(labels, options.max_width // 2))
        table.add_column("", no_wrap=True, width=width)
        for title in columns:
            table.add_column(title, justify="right", no_wrap=True, min_width=8)
        table.add_column("", no_wrap=True)
        for row in lines:
            points = (_ms(getattr(row, name), self.trace.arrived) for name in columns.values())
            table.add_row(Text(row.label), bar(row, self.trace.arrived, end, width), *points, _marks(row))
        yield table
        yield from (start for row in lines if (start := _start(row)))
        yield _legend(self.trace, end)


def _ms(time: float, origin: float) -> str:
    return f"{(time - origin) * 1000:.1f}" if time else "-"


def _marks(row: Row) -> Text:
    text = Text()
    if row.cold:
        text.append("cold" if not row.folded else f"{row.cold} cold", style="yellow")
        if told := _told(_slowest(row).start, _WHOLE):
            text.append(f" ({told})", style="dim")
    batches = [task.batch for task in row.tasks if task.batch]
    if batches:
        waited = max(task.batch_wait_s for task in row.tasks) * 1000
        size = f"{min(batches)}-{max(batches)}" if min(batches) < max(batches) else f"{max(batches)}"
        text.append(f"{' ' if text else ''}batch {size}" + (f", waited {waited:.1f}" if waited >= 0.05 else ""), "cyan")
    if row.errors:
        said = row.tasks[0].error if not row.folded else f"{row.errors} failed"
        text.append((" " if text else "") + said, style="red")
    return text


def _slowest(row: Row) -> TaskTrace:
    """Of a row's tasks the one whose container took longest to start."""
    return max(row.tasks, key=lambda task: sum(task.start.get(phase, 0.0) for phase in _WHOLE))


def _told(start: Mapping[str, float], phases: Iterable[str]) -> str:
    return ", ".join(f"{phase} {start[phase] * 1000:.0f}" for phase in phases if phase in start)


def _start(row: Row) -> Text | None:
    """What a cold start went into, where `setup` told of its parts: from the wait for a process to the first output."""
    task = _slowest(row)
    parts = _told(task.start, _PARTS)
    if not parts:
        return None
    text = f"cold start of {task.stage}: "
    spawn = task.dispatched - task.queued - sum(task.start.get(phase, 0.0) for phase in _WHOLE)
    if spawn > 0:  # otherwise the container had been starting before the task came
        text += f"spawn {spawn * 1000:.0f}, "
    text += f"{_told(task.start, _WHOLE)} ({parts})"
    if task.first_output:
        text += f", first output {(task.first_output - task.started) * 1000:.0f}"
    return Text(text, style="dim")


def _legend(trace: InvocationTrace, end: float) -> Text:
    parts = [f"{(end - trace.arrived) * 1000:.1f} ms in all" if trace.finished else "still running"]
    if trace.first_output:
        parts.append(f"first output after {_ms(trace.first_output, trace.arrived)} ms")
    if trace.deadline:
        parts.append(f"deadline {_ms(trace.deadline, trace.arrived)} ms")
    if trace.dropped:
        parts.append(f"{trace.dropped} more tasks not recorded")
    marks = f"{_WAITING} waits  {_FETCHING} fetches  {_RUNNING} runs  {_STREAMING} streams  {_SENDING} sends"
    if any(task.dispatched and not (task.started or task.first_output) for task in trace.tasks):
        marks += f"  {_CUT_OFF} cut off in its container"
    return Text("times in ms; " + ", ".join(parts) + "\n" + marks, style="dim")


def as_data(trace: InvocationTrace) -> dict[str, Any]:
    """The same as plain values: milliseconds since arrival, None where a point was never reached."""

    def since(time: float) -> float | None:
        return round((time - trace.arrived) * 1000, 3) if time else None

    return {
        "invocation": trace.invocation,
        "workflow": trace.key,
        "duration_ms": since(trace.finished),
        "first_output_ms": since(trace.first_output),
        "deadline_ms": since(trace.deadline),
        "dropped": trace.dropped,
        "tasks": [
            {
                "stage": task.stage,
                "tag": list(task.tag),
                "attempt": task.attempt,
                "container": task.container,
                **{f"{point}_ms": since(getattr(task, point)) for point in POINTS},
                "items": task.items,
                "cold": task.cold,
                "start_ms": {
                    phase: round(task.start[phase] * 1000, 3) for phase in (*_WHOLE, *_PARTS) if phase in task.start
                },
                "error": task.error,
                "batch": task.batch,
                "batch_wait_ms": round(task.batch_wait_s * 1000, 3),
            }
            for task in trace.tasks
        ],
    }
