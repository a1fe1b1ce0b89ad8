"""Arrivals from a recorded trace: CSV or JSON lines with an event on each, or counts of events in columns 1, 2, 3, ...

The caller reads the file; every fault is named by file, line and column. None of the public traces is shipped: the
formats of the Azure LLM inference, Azure Functions and Mooncake traces are among those that are read.
"""

from __future__ import annotations

import csv
import datetime
import enum
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataflower.errors import InvalidArgument, Problem
from dataflower.loadgen.arrivals import Times

TIME_COLUMNS = ("timestamp", "time", "arrival", "arrived_at", "start", "ts")
"""Looked for, in this order and whatever the case, if no column is named."""
_FAULTS = 20


class Unit(enum.StrEnum):
    """What a number in the time column counts. Dates need none."""

    S = "s"
    MS = "ms"
    US = "us"

    @property
    def seconds(self) -> float:
        """Of one."""
        return {"s": 1.0, "ms": 1e-3, "us": 1e-6}[self.value]


@dataclass(frozen=True, slots=True)
class Replay:
    """How a trace is laid on a run.

    Attributes:
        column: the column (or JSON key) with the time of an event; None: the first of `TIME_COLUMNS`.
        unit: of numbers there.
        window: (from, to) in seconds since the first event of the trace; the run begins at `from`.
        speed: 2 replays twice as fast.
        inputs: input of the workflow -> column that gives its value.
        period_s: of files of counts, how long each column stands for.
    """

    column: str | None = None
    unit: Unit = Unit.S
    window: tuple[float, float] = (0.0, math.inf)
    speed: float = 1.0
    inputs: Mapping[str, str] = ()  # type: ignore[assignment]
    period_s: float = 60.0

    def check(self) -> None:
        """Raise InvalidArgument for what can't be replayed."""
        if not (math.isfinite(self.speed) and self.speed > 0):
            raise InvalidArgument(f"the speed-up must be greater than 0, not {self.speed:g}")
        if not 0 <= self.window[0] < self.window[1]:
            raise InvalidArgument(f"the window {self.window[0]:g}:{self.window[1]:g} holds no time")


@dataclass(frozen=True, slots=True)
class Recorded:
    """A trace as it is to be replayed: start times, and for each the values of the mapped inputs (or nothing).

    `speed`: times as fast as they were recorded.
    """

    times: Times
    inputs: tuple[Mapping[str, Any], ...] = ()
    speed: float = 1.0


class TraceInvalid(InvalidArgument):
    """A trace that can't be read; `problems` lists what is wrong with it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems = tuple(problems)


def read_trace(text: str, file: str, replay: Replay, seed: int = 0) -> Recorded:
    """The arrivals of a trace. Events need not be in order; `seed` spreads counts within their periods.

    Raises:
        TraceInvalid: no such column, or lines that can't be read.
        InvalidArgument: the window or the speed-up make no sense, or no event lies in the window.
    """
    replay.check()
    text = text.removeprefix("\ufeff")
    if text.lstrip().startswith("{"):
        events = _events(_json_rows(text, file), file, replay)
    else:
        reader = csv.reader(io.StringIO(text))
        header = [title.strip() for title in next(reader, [])]
        counts = [i for i, title in enumerate(header) if title.isdigit()]
        if counts and replay.column is None and not _time_column(header):
            events = _spread(reader, counts, file, replay, seed)
        else:
            rows = ((reader.line_num, dict(zip(header, row, strict=False))) for row in reader if any(row))
            events = _events(rows, file, replay, header)
    return _laid(events, file, replay)


def _laid(events: list[tuple[float, Mapping[str, Any]]], file: str, replay: Replay) -> Recorded:
    events.sort(key=lambda event: event[0])
    begin, end = replay.window
    origin = events[0][0] if events else 0.0
    kept = [(time - origin - begin, given) for time, given in events if begin <= time - origin < end]
    if not kept:
        raise InvalidArgument(f"{file}: no event between {begin:g} s and {end:g} s ({len(events)} in all)")
    times = np.array([time for time, _ in kept]) / replay.speed
    return Recorded(times, tuple(given for _, given in kept) if replay.inputs else (), replay.speed)


def _json_rows(text: str, file: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, row in enumerate(text.splitlines(), 1):
        if not row.strip():
            continue
        try:
            found = json.loads(row)
        except ValueError as error:
            raise TraceInvalid([Problem(file, line, 1, f"not JSON: {error}")]) from None
        if not isinstance(found, dict):
            raise TraceInvalid([Problem(file, line, 1, "not a JSON object")])
        yield line, found


def _events(
    rows: Iterator[tuple[int, dict[str, Any]]], file: str, replay: Replay, header: Sequence[str] = ()
) -> list[tuple[float, Mapping[str, Any]]]:
    events: list[tuple[float, Mapping[str, Any]]] = []
    problems: list[Problem] = []
    columns = list(header)
    column = ""
    for line, row in rows:
        if not column:
            columns = columns or list(row)
            column = _checked(columns, file, replay)
        try:
            given = {name: _value(row[source]) for name, source in dict(replay.inputs).items()}
            events.append((_seconds(row[column], replay.unit), given))
        except KeyError as error:
            problems.append(Problem(file, line, 1, f"{error.args[0]!r} is missing"))
        except ValueError as error:
            at = columns.index(column) + 1 if column in columns else 1
            problems.append(Problem(file, line, at, str(error), "a number, or a date such as 2023-11-16 18:17:03.97"))
        if len(problems) >= _FAULTS:
            break
    if not events and not problems:
        problems.append(Problem(file, 1, 1, "the trace has no events"))
    if problems:
        raise TraceInvalid(problems)
    return events


def _checked(columns: Sequence[str], file: str, replay: Replay) -> str:
    """The time column; TraceInvalid if it or a mapped one is not there."""
    known = f"the columns are {', '.join(columns)}"
    column = replay.column or _time_column(columns)
    wanted = [column or "timestamp", *dict(replay.inputs).values()]
    missing = [name for name in wanted if name not in columns]
    if missing:
        hint = known if replay.column or column else known + "; --trace-column names another"
        raise TraceInvalid([Problem(file, 1, 1, f"no column {name!r}", hint) for name in missing])
    return wanted[0]


def _time_column(columns: Sequence[str]) -> str | None:
    by_name = {title.lower(): title for title in reversed(columns)}
    return next((by_name[name] for name in TIME_COLUMNS if name in by_name), None)


def _seconds(value: Any, unit: Unit) -> float:
    """A number of units, or a date as seconds since the epoch."""
    text = str(value).strip()
    try:
        time = float(text) * unit.seconds
    except ValueError:
        try:
            date = datetime.datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(f"no time: {text!r}") from None
        time = (date if date.tzinfo else date.replace(tzinfo=datetime.UTC)).timestamp()
    if not math.isfinite(time):
        raise ValueError(f"no time: {text!r}")
    return time


def _value(value: Any) -> Any:
    """What a cell holds: a number if it looks like one."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _spread(
    rows: Iterator[list[str]], counts: Sequence[int], file: str, replay: Replay, seed: int
) -> list[tuple[float, Mapping[str, Any]]]:
    """Counts for each period, over all lines: that many events at random moments of it.

    The trace begins at its first column, whether or not anything happened in it.
    """
    total = np.zeros(len(counts), dtype=np.int64)
    for line, row in enumerate(rows, 2):
        try:
            total += np.array([int(row[i] or 0) for i in counts])
        except (ValueError, IndexError):
            raise TraceInvalid([Problem(file, line, counts[0] + 1, "the counts are not all whole numbers")]) from None
    if (total < 0).any():
        raise TraceInvalid([Problem(file, 2, counts[0] + 1, "a count is negative")])
    random = np.random.default_rng(seed)
    found: list[tuple[float, Mapping[str, Any]]] = []
    for period, count in enumerate(total):
        found += [((period + part) * replay.period_s, {}) for part in random.random(int(count))]
    return found
