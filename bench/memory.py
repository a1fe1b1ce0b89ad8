"""How much memory of its own does a warm container with torch take?

Private memory as the kernel counts it (Private_Clean + Private_Dirty of /proc/PID/smaps_rollup), after a torch
operation in each; `container_pss_mb` adds its share of what is shared (PSS).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
from argparse import Namespace
from pathlib import Path

import uvloop

from bench.engine import call, document, engine, stage
from bench.report import Report, arguments, finish

MB = 1024


def workflow(containers: int) -> str:
    """One stage with so many containers, torch imported in their zygote."""
    rest = f", preload: [torch], scaling: {{min_replicas: {containers}, max_replicas: {containers}}}"
    return document("resident", "{x: {type: int}}", stage("s", "Resident", "{x: inputs.x}", rest), "{who: s.out}")


def megabytes(pid: int) -> tuple[float, float]:
    """Private memory and proportional share of a process."""
    fields: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        fields[name] = int(rest.split()[0])
    return (fields["Private_Clean"] + fields["Private_Dirty"]) / MB, fields["Pss"] / MB


def whole(pid: int) -> tuple[float, float]:
    """Of a container with all that lives in its process namespace: in a sandbox that has a first process, too."""
    namespace = os.readlink(f"/proc/{pid}/ns/pid")
    mine = os.readlink("/proc/self/ns/pid")
    others = [] if namespace == mine else [int(name) for name in os.listdir("/proc") if name.isdigit()]
    parts = [megabytes(pid)]
    for other in others:
        with contextlib.suppress(OSError):
            if other != pid and os.readlink(f"/proc/{other}/ns/pid") == namespace:
                parts.append(megabytes(other))
    return sum(private for private, _ in parts), sum(share for _, share in parts)


async def measure(report: Report, options: Namespace) -> None:
    """All figures."""
    containers = 4 if options.quick else 32
    async with engine(workflow(containers), max_containers=64) as host:
        await host.wait_ready("resident")
        seen: set[str] = set()
        while len(seen) < containers:
            results = await asyncio.gather(*(call(host, "resident", {"x": i}) for i in range(4 * containers)))
            seen |= {str(result["who"]) for result in results}
        found = [whole(pid) for pid in host.container_pids().values()]
    private, share = [sample[0] for sample in found], [sample[1] for sample in found]
    words = f"warm container with torch, {containers} of them"
    value = statistics.median(private)
    report.add("container_mb", f"{words}: private", value, unit="MB", at_most=25, samples=private)
    report.add("container_pss_mb", f"{words}: with its share of what is shared", statistics.median(share), unit="MB")


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "")
    report = Report("memory")
    uvloop.run(measure(report, options))
    finish(report, options)


if __name__ == "__main__":
    main()
