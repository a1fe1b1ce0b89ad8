"""What is a hop made of: CPU time, system calls, wake-ups and context switches, on the host's side and in the stages?

Counted, not timed, over a warm chain of four on one core, per hop: for the floor in plain Python (straight to the next
stage; by way of the caller) and for the engine (1 KB inside the message; 1 MB by reference). CPU time is the
scheduler's own account, so that other load on the machine matters little. Counts come from `perf stat` (tracepoints).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from argparse import Namespace
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import numpy as np
import uvloop

from bench.engine import engine, pin
from bench.hop import KB, MB, STAGES, chain, once
from bench.peers.floor import Chain
from bench.processes import descendants
from bench.report import Report, arguments, finish

TRACEPOINTS = {
    "raw_syscalls:sys_enter": "syscalls",
    "sched:sched_switch": "switches",
    "sched:sched_wakeup": "wakeups",
    "page-faults": "faults",
}
SYSCALLS = ("sendto", "sendmsg", "recvfrom", "recvmsg", "read", "write", "epoll_wait", "epoll_pwait", "poll", "futex")
MISSING = "perf is not installed, or may not count tracepoints here"

Round = Callable[[], Awaitable[None]]


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time so far of processes, all threads, as the scheduler counts it (nanoseconds in schedstat)."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


class Counter:
    """`perf stat` on some processes, from `start` until `stop`."""

    def __init__(self, pids: Iterable[int]) -> None:
        events = [*TRACEPOINTS, *(f"syscalls:sys_enter_{name}" for name in SYSCALLS)]
        self._read, write = os.pipe()
        ack, self._ack = os.pipe()
        command = ["perf", "stat", "-x", ",", "-e", ",".join(events), "-p", ",".join(map(str, pids))]
        command += ["-D", "-1", "--control", f"fd:{self._read},{self._ack}"]
        self._process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, pass_fds=(self._read, self._ack), stdout=subprocess.DEVNULL
        )
        os.close(self._read)
        os.close(self._ack)
        self._write, self._answers = write, ack

    def start(self) -> None:
        """Count from now on."""
        self._order(b"enable\n")

    def stop(self) -> dict[str, int]:
        """Counts by name; empty if perf could not count."""
        self._order(b"disable\n")
        self._process.send_signal(signal.SIGINT)
        assert self._process.stderr is not None
        lines = self._process.stderr.read().splitlines()
        self._process.stderr.close()
        self._process.wait()
        os.close(self._write)
        os.close(self._answers)
        counts: dict[str, int] = {}
        for line in lines:
            value, _, event = (*line.split(","), "", "")[:3]
            if value.isdigit():
                counts[TRACEPOINTS.get(event, event.rpartition("sys_enter_")[2])] = int(value)
        return counts

    def _order(self, order: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended: it may not count here
            os.write(self._write, order)
            os.read(self._answers, 16)


class Budget:
    """One contender: per hop, the caller's side (`host`) and that of the stages."""

    def __init__(self, host: list[int], stages: list[int], rounds: int) -> None:
        self._pids = {"host": host, "stages": stages}
        self._rounds = rounds
        self.cpu_us: dict[str, float] = {}
        self.counts: dict[str, dict[str, float]] = {}

    async def run(self, round_: Round) -> None:
        """Warm up, then count: CPU time first, the rest in a second pass, since counting costs."""
        for _ in range(self._rounds // 5):
            await round_()
        hops = self._rounds * STAGES
        before = {side: cpu_seconds(pids) for side, pids in self._pids.items()}
        for _ in range(self._rounds):
            await round_()
        for side, pids in self._pids.items():
            self.cpu_us[side] = (cpu_seconds(pids) - before[side]) / hops * 1e6
        if shutil.which("perf") is None:
            return
        counters = {side: Counter(pids) for side, pids in self._pids.items()}
        for counter in counters.values():
            counter.start()
        for _ in range(self._rounds):
            await round_()
        for side, counter in counters.items():
            self.counts[side] = {name: value / hops for name, value in counter.stop().items()}

    def report(self, report: Report, name: str, words: str) -> None:
        """Its rows."""
        for side, value in self.cpu_us.items():
            report.add(f"cpu_us_{name}_{side}", f"{words}: CPU time per hop, {side}", value, unit="us")
        for side in self._pids:
            counts = self.counts.get(side, {})
            for count in TRACEPOINTS.values():
                value = counts.get(count)
                question = f"{words}: {count} per hop, {side}{self._named(counts) if count == 'syscalls' else ''}"
                report.add(f"{count}_{name}_{side}", question, value, missing=MISSING)

    def _named(self, counts: dict[str, float]) -> str:
        found = [f"{name} {counts[name]:.2g}" for name in SYSCALLS if counts.get(name, 0) >= 0.05]
        return f" ({', '.join(found)})" if found else ""


async def floor(report: Report, rounds: int) -> None:
    """Plain Python over sockets."""
    for name, words in {"direct": "floor, straight", "relay": "floor, by the caller"}.items():
        made = Chain(STAGES, KB, name == "relay")
        step = made.relayed if name == "relay" else made.direct

        async def round_(step: Callable[[], None] = step) -> None:
            step()

        try:
            budget = Budget([os.getpid()], [process.pid for process in made.processes if process.pid], rounds)
            await budget.run(round_)
            budget.report(report, name, words)
        finally:
            made.close()


async def ours(report: Report, rounds: int) -> None:
    """The engine."""
    async with engine(chain(STAGES)) as host:
        payloads = {"engine": ("engine, 1 KB", os.urandom(KB)), "large": ("engine, 1 MB", np.ones(MB, np.uint8))}
        for name, (words, payload) in payloads.items():
            await once(host, f"chain{STAGES}", {"x": payload})
            budget = Budget([os.getpid()], descendants(os.getpid()), rounds)
            await budget.run(lambda payload=payload: once(host, f"chain{STAGES}", {"x": payload}))
            budget.report(report, name, words)


async def measure(report: Report, options: Namespace) -> None:
    """All figures."""
    rounds = 300 if options.quick else 3000
    await floor(report, rounds)
    await ours(report, rounds)


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "")
    report = Report("budget")
    pin(0)
    uvloop.run(measure(report, options))
    finish(report, options)


if __name__ == "__main__":
    main()
