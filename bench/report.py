"""What every benchmark shares: its arguments, its table, and the JSON that it leaves.

The JSON is `{"bench", "figures", "missing", "samples", "versions", "machine", "command"}`: a figure that could not be
measured is null, with its reason under `missing`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PACKAGES = ("dataflower", "grpcio", "msgspec", "numpy", "torch", "uvloop")


@dataclass
class Row:
    """One figure: its key, what it is, its target in words, and whether it was met."""

    key: str
    question: str
    value: float | None
    unit: str = ""
    target: str = ""
    met: bool | None = None
    samples: Sequence[float] = ()
    missing: str = ""


@dataclass
class Report:
    """Rows of one benchmark."""

    bench: str
    rows: list[Row] = field(default_factory=list)
    rivals: dict[str, str] = field(default_factory=dict)
    """Versions of what we are compared with."""

    def add(
        self,
        key: str,
        question: str,
        value: float | None,
        *,
        unit: str = "",
        at_most: float | None = None,
        at_least: float | None = None,
        samples: Sequence[float] = (),
        missing: str = "",
    ) -> None:
        """Add a figure; `samples` in the same unit give the median and p99 shown beside it."""
        target, met = "", None
        if at_most is not None:
            target = f"<= {at_most:g}"
            met = None if value is None else value <= at_most
        elif at_least is not None:
            target = f">= {at_least:g}"
            met = None if value is None else value >= at_least
        self.rows.append(Row(key, question, value, unit, target, met, samples, missing))

    def show(self) -> None:
        """Print the table."""
        table = Table(title=f"bench.{self.bench}", title_justify="left")
        for name in ("figure", "question", "value", "target", "p99", "n"):
            table.add_column(name, justify="left" if name in ("figure", "question") else "right")
        for row in self.rows:
            value = f"[dim]{row.missing}[/]" if row.value is None else f"{row.value:.4g} {row.unit}"
            if row.met is not None:
                value = f"[{'green' if row.met else 'red'}]{value}[/]"
            p99 = f"{percentile(row.samples, 99):.4g}" if len(row.samples) > 1 else ""
            table.add_row(row.key, row.question, value, row.target, p99, str(len(row.samples) or ""))
        console = Console()
        (console if console.is_terminal else Console(width=150)).print(table)

    def save(self, path: Path) -> None:
        """Write the JSON."""
        document = {
            "bench": self.bench,
            "figures": {row.key: row.value for row in self.rows},
            "missing": {row.key: row.missing for row in self.rows if row.value is None},
            "samples": {row.key: summary(row.samples) for row in self.rows if len(row.samples) > 1},
            "versions": versions() | self.rivals,
            "machine": machine(),
            "command": " ".join(["python", "-m", f"bench.{self.bench}", *sys.argv[1:]]),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1) + "\n")


def percentile(samples: Sequence[float], q: float) -> float:
    """The q-th percentile (nearest rank)."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * int(q * 10) // 1000) - 1))]


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Count, median and tail of the samples."""
    return {
        "n": len(samples),
        "median": statistics.median(samples),
        "p90": percentile(samples, 90),
        "p99": percentile(samples, 99),
        "min": min(samples),
        "max": max(samples),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that matter."""
    found = {"python": platform.python_version(), "modules": modules()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def modules() -> str:
    """Whether the modules on a token's way run as machine code (`make native`)."""
    spec = importlib.util.find_spec("dataflower.core.host")
    return "compiled" if spec is not None and spec.origin is not None and not spec.origin.endswith(".py") else "plain"


def machine() -> dict[str, Any]:
    """Cores, memory and kernel."""
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {"cores": os.cpu_count(), "memory_gib": round(pages * page / 2**30, 1), "kernel": platform.release()}


def arguments(description: str) -> argparse.Namespace:
    """`--quick`, `--alone` and `--json FILE`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer samples, under 30 s")
    parser.add_argument("--alone", action="store_true", help="without rivals (see make bench-peers)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    return parser.parse_args()


def rounds(most: int, budget_s: float, what: str, least: int = 3) -> Iterator[int]:
    """Numbers of rounds, from 0 on, told as they go: `most`, or as many as fit into `budget_s`; at least `least`."""
    began = time.perf_counter()
    for number in range(most):
        spent = time.perf_counter() - began
        if number >= least and spent * (number + 1) / number > budget_s:
            print(f"{what}: {number} rounds in {spent:.0f} s, more would take too long", file=sys.stderr)
            return
        print(f"{what}: round {number + 1} of {most}, {spent:.0f} s so far", file=sys.stderr, flush=True)
        yield number


def finish(report: Report, options: argparse.Namespace) -> None:
    """Show the table, and save it if asked."""
    report.show()
    if options.json is not None:
        report.save(options.json)
