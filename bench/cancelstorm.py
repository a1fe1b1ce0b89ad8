"""Does a cancelled invocation stop at once, on one host and on two: no later stage runs, and nothing is held?

10,000 invocations (chains of three stages with an array, fan-outs, streams from stage to stage) are cancelled at random
moments of any stage or between two. Every function notes itself as it begins and as it ends, so that nobody's books
have to be believed; nor have the notes, since each container reports besides when user code began. A later stage counts
as run if the host gave it out after the cancellation, or if it began more than 10 ms after it by its function's note or
by its container's report (one that ran and left no note counts). Slots, tasks and memory that are held a second after
the last cancellation count as held.
`cancel_reach_ms`: from the cancellation to the end of a function that it found running (99 of 100 are faster); beside
it, from the same minutes, how late a process is that only waits for a byte (`cancel_wake_ms`).

Then the same with the later stages on a second host (`hosts_cancel_*`), over a line without a limit.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from bench.engine import document, engine
from bench.report import Report, arguments, finish, percentile
from bench.second_host import NAME, TOKEN, Server, second_host
from bench.storm_functions import NOTE
from dataflower.core.trace import InvocationTrace
from dataflower.host.runtime import Runtime
from dataflower.testing.leaks import held

IN_FLIGHT = 3
WAKE_EVERY_S = 0.02
_TIME = struct.Struct("<d")
NBYTES = 65_536
BEGUN_S = 0.01
"""A function that begins later than this after the cancellation was not on its way there."""
LONG_S, BRIEF_S = 10.0, 0.0005
STAGES = ("first", "second", "third")
FLOWS = {
    "chain": (("Linger", "x: inputs.n"), ("Linger", "x: first.out"), ("Linger", "x: second.out")),
    "fan": (("Count", "n: inputs.items"), ("Linger", "x: {each: first.chunk}"), ("Linger", "x: {gather: second.out}")),
    "stream": (("Count", "n: inputs.items"), ("Trickle", "chunk: first.chunk"), ("Trickle", "chunk: second.chunk")),
}
"""Of each stage the function, and what it reads."""


def workflow(name: str, log: str) -> str:
    """A workflow whose functions take as long as the caller says, and note when they ran."""
    lines = []
    for place, (function, reads) in enumerate(FLOWS[name]):
        inputs = f"call: inputs.call, seconds: inputs.s{place}, {reads}"
        rest = f"params: {{log: '{log}', place: {place}}}, scaling: {{min_replicas: 1}}"
        lines.append(
            f"  {STAGES[place]}: {{function: 'bench.storm_functions:{function}', inputs: {{{inputs}}}, {rest}}}"
        )
    ports = "{n: int, items: int, call: int, s0: float, s1: float, s2: float}"
    output = "third.chunk" if name == "stream" else "third.out"
    return document(name, ports, "\n".join(lines), f"{{y: {output}}}")


@dataclass
class Counts:
    """Of a storm."""

    cancelled: int = 0
    completed: int = 0
    given_out: int = 0
    """Later stages that the host gave out after the cancellation."""
    at: dict[int, float] = field(default_factory=dict)
    """By call: when it was cancelled."""
    noted: set[tuple[int, int]] = field(default_factory=set)
    """Calls and places of which functions noted that they began, whenever that was."""
    ran: int = 0
    """Later stages that began after it by their own notes."""
    reported: int = 0
    """The same by what their containers reported."""
    unnoted: int = 0
    """Tasks that began by their container's report and left no note."""
    raced: int = 0
    """Functions that began shortly after it: their containers had looked before."""
    reach_s: list[float] = field(default_factory=list)
    met: dict[tuple[str, int], int] = field(default_factory=dict)
    """By flow and place: functions that a cancellation found running."""
    held: int = 0

    def read(self, log: Path, flows: dict[int, str]) -> None:
        """Take what the functions noted."""
        for call, place, begun, ended in NOTE.iter_unpack(log.read_bytes()):
            at = self.at.get(call)
            if not ended:
                self.noted.add((call, place))
                if at is not None and begun > at:
                    self.ran += place > 0 and begun > at + BEGUN_S
                    self.raced += begun <= at + BEGUN_S
            elif at is not None and begun <= at <= ended:
                key = flows[call], place
                self.met[key] = self.met.get(key, 0) + 1
                self.reach_s.append(ended - at)

    def hear(self, call: int, trace: InvocationTrace) -> None:
        """Take what containers reported of a cancelled call, after `read`."""
        at = self.at[call]
        for task in trace.tasks:
            place = STAGES.index(task.stage)
            self.given_out += place > 0 and task.dispatched > at
            self.reported += place > 0 and task.started > at + BEGUN_S
            self.unnoted += task.started > 0.0 and (call, place) not in self.noted

    @property
    def later(self) -> int:
        """Later stages that ran: given out too late, or begun too late by either account."""
        return self.given_out + max(self.ran, self.reported)


class Storm:
    """Callers that change their minds."""

    def __init__(self, host: Runtime, cancels: int, seed: int) -> None:
        self.counts = Counts()
        self.flows: dict[int, str] = {}
        self.traces: dict[int, InvocationTrace] = {}
        """Of cancelled calls; containers report of a task after its call is over."""
        self._host = host
        self._left = cancels
        self._random = random.Random(seed)

    async def call(self) -> None:
        """Invoke and cancel, again and again."""
        while self._left > 0:
            self._left -= 1
            number, counts = len(self.flows) + 1, self.counts
            name = self.flows[number] = self._random.choice(list(FLOWS))
            slow = self._random.randrange(4)  # none of the three at times
            seconds = {f"s{place}": LONG_S if place == slow else BRIEF_S for place in range(3)}
            given = {"n": NBYTES, "items": 3, "call": number, **seconds}
            invocation = await self._host.invoke(name, given)
            await asyncio.sleep(self._random.uniform(0.0, 0.03))
            at = time.monotonic()
            invocation.cancel()
            if invocation.failure is None and invocation.is_over:
                counts.completed += 1
                continue
            counts.at[number] = at
            counts.cancelled += 1
            await invocation.wait_over()
            assert invocation.trace is not None
            self.traces[number] = invocation.trace


@contextmanager
def noted() -> Iterator[Path]:
    """A file for notes."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "notes"
        log.touch()
        yield log


@contextmanager
def woken() -> Iterator[list[float]]:
    """How late another process was each time that it was woken, seconds; filled in at the end."""
    program = (
        "import sys, os, struct, time\n"
        "while block := os.read(0, 8):\n"
        "    os.write(1, struct.pack('<d', time.monotonic() - struct.unpack('<d', block)[0]))\n"
    )
    late: list[float] = []
    over = threading.Event()
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ask, answer = process.stdin.fileno(), process.stdout.fileno()

        def watch() -> None:
            while not over.wait(WAKE_EVERY_S):
                os.write(ask, _TIME.pack(time.monotonic()))
                late.extend(_TIME.unpack(os.read(answer, _TIME.size)))

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield late
        finally:
            over.set()
            thread.join()
            process.stdin.close()


async def storm(cancels: int, log: Path, seed: int, lender: Server | None = None, **settings: object) -> Counts:
    """One storm against one host, which may know another."""
    sources = [workflow(name, str(log)) for name in FLOWS]
    async with engine(*sources, writable_paths=(str(log.parent),), **settings) as host:
        for name in FLOWS:
            await host.wait_ready(name)
        callers = Storm(host, cancels, seed)
        await asyncio.gather(*(callers.call() for _ in range(IN_FLIGHT)))
        await asyncio.sleep(1.0)
        callers.counts.held = sum(held(host).values()) + (0 if lender is None else lender.held())
        host._core.check_integrity()
    callers.counts.read(log, callers.flows)
    for number, trace in callers.traces.items():
        callers.counts.hear(number, trace)
    return callers.counts


def add(report: Report, prefix: str, counts: Counts, took_s: float, late: list[float]) -> None:
    """The figures of a storm."""
    words = f"{counts.cancelled} cancelled in {took_s:.0f} s, {counts.completed} were faster"
    met = ", ".join(f"{flow} {place + 1}: {count}" for (flow, place), count in sorted(counts.met.items()))
    print(f"{prefix}: {words}; {counts.raced} functions began within 10 ms; found running (flow, stage): {met}")
    print(f"  began later: {counts.ran} by notes, {counts.reported} by reports; {counts.unnoted} began without a note")
    report.add(f"{prefix}_ran", f"{words}: later stages given out, or begun 10 ms later", counts.later, at_most=0)
    report.add(f"{prefix}_held", f"{words}: slots, tasks, memory held 1 s later", counts.held, at_most=0)
    reach = [seconds * 1e3 for seconds in counts.reach_s]
    middle = f"median {statistics.median(reach):.2f} ms" if reach else ""
    slowest = percentile(reach, 99) if reach else None
    question = f"until a running function ends, p99 ({middle})"
    report.add(f"{prefix}_reach_ms", question, slowest, unit="ms", at_most=10, samples=reach, missing="none ran")
    wakes = [seconds * 1e3 for seconds in late]
    question = f"a plain wake-up meanwhile, p99 (median {statistics.median(wakes):.2f} ms)"
    report.add(f"{prefix}_wake_ms", question, percentile(wakes, 99), unit="ms", samples=wakes)


async def measure(report: Report, options: Namespace) -> None:
    """All figures."""
    with noted() as log:
        begun = time.monotonic()
        with woken() as late:
            counts = await storm(300 if options.quick else 10_000, log, 11)
        add(report, "cancel", counts, time.monotonic() - begun, late)
    with second_host(link="") as second, noted() as log:
        places = tuple(f"{flow}.{stage}={NAME}" for flow in FLOWS for stage in ("second", "third"))
        begun = time.monotonic()
        settings = {"host_name": "a", "peers": (second.peer,), "peer_token": TOKEN, "placement": places}
        with woken() as late:
            counts = await storm(150 if options.quick else 2000, log, 12, second.server, **settings)
        print(f"two hosts: {second.words}")
        add(report, "hosts_cancel", counts, time.monotonic() - begun, late)


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "")
    report = Report("cancelstorm")
    uvloop.run(measure(report, options))
    finish(report, options)


if __name__ == "__main__":
    main()
