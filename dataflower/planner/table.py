"""CSV text -> profiles and prices, with every fault named by file, line and column. The caller reads the file.

A profile table has the columns `model` (or `stage`), `hardware`, `batch`, `duration_s` and may have `std_s` and
`memory_bytes`; others are ignored. A price table has `hardware`, `price` (for an hour) and may have `memory_bytes`.
"""

from __future__ import annotations

import csv
import enum
import io
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from dataflower.errors import InvalidArgument, Problem
from dataflower.planner.profile import Device, Point, Profile

MAX_STEP = 4.0
"""Two measured batches further apart than this factor leave a gap."""
NOISE = 0.03
"""A duration that falls by less than this share as the batch grows is noise, and is lifted to the one before."""

_PROFILE_COLUMNS = {"model": ("model", "stage"), "hardware": ("hardware",), "batch": ("batch",), "duration_s": ()}
_PRICE_COLUMNS = {"hardware": ("hardware",), "price": ("price", "price_per_hour")}


class Dips(enum.Enum):
    """What becomes of a duration that falls by more than `NOISE` as the batch grows.

    REFUSE is an error. MEND plans with the shortest duration among this batch and larger ones: running a partly
    filled larger batch takes no longer than that.
    """

    REFUSE = "refuse"
    MEND = "mend"


class ProfileInvalid(InvalidArgument):
    """A table that does not hold together; `problems` lists everything wrong with it at once."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems = problems


@dataclass(slots=True)
class _Table:
    """The rows of one file and what is wrong with them."""

    file: str
    header: tuple[str, ...]
    problems: list[Problem] = field(default_factory=list)

    def column(self, name: str, *, needed: bool = True) -> int | None:
        """Index of the column called `name`, or that starts with `name(`."""
        aliases = {**_PROFILE_COLUMNS, **_PRICE_COLUMNS}.get(name) or (name,)
        for i, title in enumerate(self.header):
            if title.split("(")[0].strip() in aliases:
                return i
        if needed:
            self.blame(1, 1, f"no column {name!r}", f"the columns are {', '.join(self.header) or 'none'}")
        return None

    def blame(self, line: int, column: int, message: str, hint: str = "") -> None:
        self.problems.append(Problem(self.file, line, column, message, hint))

    def number(self, row: list[str], line: int, column: int | None, what: str, *, whole: bool = False) -> float | None:
        """The positive number in a cell; None (and a problem) if there is none."""
        text = row[column].strip() if column is not None and column < len(row) else ""
        at = 1 + (column or 0)
        if not text:
            self.blame(line, at, f"{what} is missing")
            return None
        try:
            value = float(text)
        except ValueError:
            self.blame(line, at, f"{what} is not a number: {text!r}")
            return None
        if not math.isfinite(value) or value <= 0:
            self.blame(line, at, f"{what} must be greater than 0, not {text}")
            return None
        if whole and value != int(value):
            self.blame(line, at, f"{what} must be a whole number, not {text}")
            return None
        return value

    def text(self, row: list[str], line: int, column: int | None, what: str) -> str:
        """The text in a cell; empty (and a problem) if there is none."""
        found = row[column].strip() if column is not None and column < len(row) else ""
        if not found:
            self.blame(line, 1 + (column or 0), f"{what} is missing")
        return found


def _read(text: str, file: str) -> tuple[_Table, Iterator[tuple[int, list[str]]]]:
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff")))
    table = _Table(file, tuple(h.strip() for h in next(reader, [])))
    return table, ((reader.line_num, row) for row in reader if any(cell.strip() for cell in row))


def parse_prices(text: str, file: str) -> dict[str, Device]:
    """Devices by name.

    Raises:
        ProfileInvalid: missing columns or cells, prices that are not positive, a device listed twice.
    """
    table, rows = _read(text, file)
    name_at, price_at = table.column("hardware"), table.column("price")
    memory_at = table.column("memory_bytes", needed=False)
    devices: dict[str, Device] = {}
    for line, row in rows if not table.problems else ():
        name = table.text(row, line, name_at, "hardware")
        price = table.number(row, line, price_at, f"price of {name or 'the device'}")
        has_memory = memory_at is not None and memory_at < len(row) and row[memory_at].strip()
        memory = table.number(row, line, memory_at, "memory_bytes", whole=True) if has_memory else None
        if name in devices:
            table.blame(line, 1 + (name_at or 0), f"device {name!r} is listed twice")
        elif name and price is not None:
            devices[name] = Device(name, price, None if memory is None else int(memory))
    if not devices and not table.problems:
        table.blame(1, 1, "the table has no rows")
    if table.problems:
        raise ProfileInvalid(tuple(table.problems))
    return devices


def parse_profiles(
    text: str,
    file: str,
    devices: Mapping[str, Device],
    *,
    only: Collection[str] | None = None,
    models: Collection[str] | None = None,
    dips: Dips = Dips.REFUSE,
) -> tuple[Profile, ...]:
    """Profiles in the order of their first rows.

    Args:
        text: the table.
        file: its name, for messages.
        devices: the devices that are known, by name.
        only: rows of other devices are passed over; None takes all.
        models: rows of other models are passed over; None takes all.
        dips: what to do where a larger batch is measured faster than a smaller one.

    Raises:
        ProfileInvalid: unknown device, gaps, times that are zero, missing or falling, a batch listed twice.
    """
    table, rows = _read(text, file)
    model_at, hardware_at = table.column("model"), table.column("hardware")
    batch_at, duration_at = table.column("batch"), table.column("duration_s")
    optional = {name: table.column(name, needed=False) for name in ("std_s", "memory_bytes")}
    found: dict[tuple[str, str], list[tuple[int, Point]]] = {}
    unknown: set[str] = set()
    for line, row in rows if not table.problems else ():
        hardware = table.text(row, line, hardware_at, "hardware")
        if only is not None and hardware and hardware not in only:
            continue
        model = table.text(row, line, model_at, "model")
        if models is not None and model and model not in models:
            continue
        if hardware and hardware not in devices and hardware not in unknown:
            unknown.add(hardware)
            hint = f"known: {', '.join(sorted(devices)) or 'none'}; add it to the price file"
            table.blame(line, 1 + (hardware_at or 0), f"unknown device {hardware!r}", hint)
        batch = table.number(row, line, batch_at, "batch", whole=True)
        duration = table.number(row, line, duration_at, "duration_s")
        extra = {
            name: table.number(row, line, at, name) if at is not None and at < len(row) and row[at].strip() else None
            for name, at in optional.items()
        }
        if model and hardware and batch is not None and duration is not None:
            memory = extra["memory_bytes"]
            point = Point(int(batch), duration, extra["std_s"], None if memory is None else int(memory))
            found.setdefault((model, hardware), []).append((line, point))
    if not found and models is None and not table.problems:
        table.blame(1, 1, "the table has no rows for these devices")
    column = 1 + (duration_at or 0)
    made = [(key, series(table.blame, column, key, rows_, dips)) for key, rows_ in found.items()]
    if table.problems:
        raise ProfileInvalid(tuple(sorted(table.problems, key=lambda p: (p.line, p.column))))
    return tuple(Profile(*key, points) for key, points in made if points is not None)


def models_in(text: str) -> tuple[str, ...]:
    """The models that a table has rows of, whatever is wrong with those."""
    table, rows = _read(text, "")
    at = table.column("model", needed=False)
    return () if at is None else tuple(dict.fromkeys(row[at].strip() for _, row in rows if at < len(row)))


Blame = Callable[..., None]
"""`blame(line, column, message, hint="")` notes a problem."""


def series(
    blame: Blame, column: int, key: tuple[str, str], rows: list[tuple[int, Point]], dips: Dips
) -> tuple[Point, ...] | None:
    """The points of one model on one device, with their lines; None (and problems) if they make no profile."""
    model, hardware = key
    name, sound = f"{model} on {hardware}", True

    def fault(line: int, message: str, hint: str = "") -> None:
        nonlocal sound
        sound = False
        blame(line, column, message, hint)

    rows = sorted(rows, key=lambda r: r[1].batch)
    if rows[0][1].batch != 1:
        fault(rows[0][0], f"{name} starts at batch {rows[0][1].batch}", "measure batch 1 too")
    for (line_a, a), (line_b, b) in pairwise(rows):
        if a.batch == b.batch:
            fault(max(line_a, line_b), f"{name}: batch {b.batch} is listed twice")
        elif b.batch > MAX_STEP * a.batch:
            fault(line_b, f"{name}: gap between batch {a.batch} and {b.batch}", "measure a batch between them")
        elif b.duration_s < a.duration_s * (1 - NOISE) and dips is Dips.REFUSE:
            message = (
                f"{name}: batch {b.batch} takes {b.duration_s:g} s, less than batch {a.batch} ({a.duration_s:g} s)"
            )
            fault(line_b, message, "measure again, or read it with --mend")
    if not sound:
        return None
    points = [point for _, point in rows]
    return tuple(mended(points) if dips is Dips.MEND else _lifted(points))


def mended(points: list[Point]) -> list[Point]:
    """The shortest duration among each batch and the larger ones."""
    result, shortest = [], math.inf
    for point in reversed(points):
        shortest = min(shortest, point.duration_s)
        result.append(Point(point.batch, shortest, point.std_s, point.memory_bytes))
    return result[::-1]


def _lifted(points: list[Point]) -> list[Point]:
    """Noise lifted to the duration before it."""
    result, longest = [], 0.0
    for point in points:
        longest = max(longest, point.duration_s)
        result.append(Point(point.batch, longest, point.std_s, point.memory_bytes))
    return result
