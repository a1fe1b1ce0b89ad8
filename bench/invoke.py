"""What does a client wait for, warm and cold, over gRPC, and what does an idle server cost?

The server is `dataflower serve` in a process of its own, the client another. `cold_ms` is the time from the call to the
first result when the stage has no container, and the zygote has torch imported. `idle_cpu_pct` adds up the CPU time of
the server, its zygotes and 32 warm containers.
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.engine import ROOT, document, stage
from bench.processes import cpu_seconds
from bench.report import Report, arguments, finish
from dataflower import Client

WARM = 32


def workflows() -> list[str]:
    """One stage; one with torch that leaves at once; the containers that stay."""
    one = document("one", "{x: {type: any}}", stage("s", "forward", "{x: inputs.x}"), "{y: s.out}")
    rest = ", preload: [torch], scaling: {keep_alive_s: 0.05, max_replicas: 1}"
    cold = document("cold", "{x: {type: any}}", stage("s", "first_operation", "{x: inputs.x}", rest), "{y: s.out}")
    rest = f", scaling: {{min_replicas: {WARM}, max_replicas: {WARM}}}"
    idle = document("idle", "{x: {type: any}}", stage("s", "forward", "{x: inputs.x}", rest), "{y: s.out}")
    return [one, cold, idle]


@contextmanager
def server() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`dataflower serve` on a free port, with a state directory of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "dataflower.cli", "serve", "--port", "0", "--state-dir", folder]
        process = subprocess.Popen([*command, "--code-path", str(ROOT)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().split()[-1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def warm_ms(client: Client, rounds: int) -> list[float]:
    """Durations of warm calls."""
    payload = b"x" * 1024
    for _ in range(20):
        client.invoke("one", x=payload)
    samples = []
    for _ in range(rounds):
        start = time.perf_counter()
        client.invoke("one", x=payload)
        samples.append((time.perf_counter() - start) * 1e3)
    return samples


def cold_ms(client: Client, rounds: int) -> list[float]:
    """Durations of calls that find no container."""
    samples = []
    while len(samples) < rounds:
        while any(s.idle or s.busy or s.starting for s in client.workflow("cold").stages):
            time.sleep(0.05)
        start = time.perf_counter()
        client.invoke("cold", x=1)
        samples.append((time.perf_counter() - start) * 1e3)
    return samples


def idle_pct(client: Client, process: subprocess.Popen[str], seconds: float) -> float:
    """Share of one core that an idle server with its warm containers takes."""
    while sum(s.idle for s in client.workflow("idle").stages) < WARM:
        time.sleep(0.1)
    time.sleep(1.0)
    before, start = cpu_seconds(process.pid), time.perf_counter()
    time.sleep(seconds)
    return (cpu_seconds(process.pid) - before) / (time.perf_counter() - start) * 100


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "")
    report = Report("invoke")
    with server() as (process, address), Client(address) as client:
        for source in workflows():
            client.apply(source)
        client.invoke("cold", x=1)  # the zygote imports torch: not what an idle server does
        idle = idle_pct(client, process, 2 if options.quick else 60)
        warm = warm_ms(client, 300 if options.quick else 5000)
        cold = cold_ms(client, 5 if options.quick else 50)
    report.add("invoke_ms", "warm Invoke over gRPC", statistics.median(warm), unit="ms", at_most=1.5, samples=warm)
    report.add(
        "cold_ms", "cold start, torch in the zygote", statistics.median(cold), unit="ms", at_most=30, samples=cold
    )
    report.add("idle_cpu_pct", f"idle, {WARM} warm containers, of one core", idle, unit="%", at_most=0.3)
    finish(report, options)


if __name__ == "__main__":
    main()
