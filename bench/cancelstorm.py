"""Does an invocation stop at once when it is cancelled, or its deadline passes, here and on a second host?

10,000 invocations are cancelled at random moments of any stage or between two: chains of three stages with an array,
fan-outs, streams from stage to stage, and functions that are found in one long sleep, spinning in pure Python,
awaiting, in a batch, without credit or room for their next item, or in the queue. Every function notes itself as it
begins and as it ends, so that nobody's books have to be believed; nor have the notes, since each container reports
besides when user code began. A later stage counts as run if the host gave it out after the cancellation, or if it began
more than 10 ms after it by its function's note or by its container's report (one that ran and left no note counts).
Slots, tasks and memory that are held a second after the last cancellation count as held.
`cancel_reach_ms`: from the cancellation to the end of a function that it found running (99 of 100 are faster), printed
by flow and stage, too; beside it, from the same minutes, how late a process is that only waits for a byte
(`cancel_wake_ms`).

The same with calls that nobody cancels, but whose deadline is a random moment soon after their start (`deadline_*`; how
long after the deadline functions end). Then both with a second host (`hosts_cancel_*`, `hosts_deadline_*`) that has the
later stages of chains, fan-outs and streams, and all stages of the others, over a line without a limit.
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
from typing import Any

import uvloop

from bench.engine import document, engine
from bench.report import Report, arguments, finish, percentile
from bench.second_host import NAME, TOKEN, Server, second_host
from bench.storm_functions import NOTE
from dataflower.core.trace import InvocationTrace
from dataflower.errors import Code, ResourceExhausted
from dataflower.host.api import Invocation
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


@dataclass(frozen=True)
class Stage:
    """The function of a stage in a module of ours, what it reads, and further keys and parameters."""

    function: str
    reads: str = ""
    keys: str = ""
    params: str = ""
    module: str = "bench.storm_functions"


def waits(function: str, *, reads: str = "x: inputs.n", keys: str = "", params: str = "") -> Stage:
    """A first stage that is busy in a way of its own."""
    return Stage(function, reads, keys, params, "bench.storm_waits")


AFTER = Stage("Linger", "x: first.out")
SPREAD = {
    "chain": (Stage("Linger", "x: inputs.n"), AFTER, Stage("Linger", "x: second.out")),
    "fan": (
        Stage("Count", "n: inputs.items"),
        Stage("Linger", "x: {each: first.chunk}"),
        Stage("Linger", "x: {gather: second.out}"),
    ),
    "stream": (
        Stage("Count", "n: inputs.items"),
        Stage("Trickle", "chunk: first.chunk"),
        Stage("Trickle", "chunk: second.chunk"),
    ),
}
"""Of three stages, the later ones on the second host."""
TRICKLE = Stage("Trickle", "chunk: first.chunk")
FOUND = {
    "sleep": (waits("Sleep"), AFTER),
    "spin": (waits("Spin"), AFTER),
    "await": (waits("Await"), AFTER),
    "batch": (waits("Together"), AFTER),
    "credit": (waits("Pour", reads="", keys=", credit: {items: 2}", params=", items: 40, nbytes: 1000"), TRICKLE),
    "room": (waits("Pour", reads="", keys=", credit: {items: 1000}", params=", items: 40, nbytes: 250000"), TRICKLE),
    "queue": (waits("Sleep", keys=", scaling: {min_replicas: 1, max_replicas: 1}"), AFTER),
}
"""Of two stages, by what the first one is found at; all on the second host."""
FLOWS = SPREAD | FOUND
MEMORY = {"container_arena_bytes": 2 << 20, "container_spill_bytes": 0}
"""Of a container: so little that `room` runs out of it, and no disk to go to."""
ENDS = {"cancel": False, "deadline": True}
"""How calls end, and whether that is by their deadline."""


def workflow(name: str, log: str) -> str:
    """A workflow whose functions take as long as the caller says, and note when they ran."""
    lines = []
    stages = FLOWS[name]
    for place, stage in enumerate(stages):
        inputs = f"call: inputs.call, seconds: inputs.s{place}"
        inputs += f", {stage.reads}" if stage.reads else ""
        keys = stage.keys if "scaling" in stage.keys else f"{stage.keys}, scaling: {{min_replicas: 1}}"
        lines.append(
            f"  {STAGES[place]}: {{function: '{stage.module}:{stage.function}', inputs: {{{inputs}}}, "
            f"params: {{log: '{log}', place: {place}{stage.params}}}{keys}}}"
        )
    ports = ", ".join(f"s{place}: float" for place in range(len(stages)))
    output = f"{STAGES[len(stages) - 1]}.{'chunk' if stages[-1].function == 'Trickle' else 'out'}"
    return document(name, f"{{n: int, items: int, call: int, {ports}}}", "\n".join(lines), f"{{y: {output}}}")


@dataclass
class Counts:
    """Of a storm. Cancelled are also those whose deadline has passed."""

    cancelled: int = 0
    completed: int = 0
    refused: int = 0
    """Calls that the host did not take, since they could not be in time."""
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
    met: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    """By flow and place: of functions that a cancellation found running, how long they still did, seconds."""
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
                self.met.setdefault((flows[call], place), []).append(ended - at)

    def hear(self, call: int, trace: InvocationTrace) -> None:
        """Take what containers reported of a cancelled call, after `read`."""
        at = self.at[call]
        for task in trace.tasks:
            place = STAGES.index(task.stage)
            self.given_out += place > 0 and task.dispatched > at
            self.reported += place > 0 and task.started > at + BEGUN_S
            self.unnoted += task.started > 0.0 and (call, place) not in self.noted

    @property
    def reach_s(self) -> list[float]:
        """How long functions still ran that a cancellation found running, seconds."""
        return [seconds for found in self.met.values() for seconds in found]

    @property
    def later(self) -> int:
        """Later stages that ran: given out too late, or begun too late by either account."""
        return self.given_out + max(self.ran, self.reported)


class Storm:
    """Callers that change their minds, or have little time."""

    def __init__(self, host: Runtime, calls: int, seed: int, *, by_deadline: bool) -> None:
        self.counts = Counts()
        self.flows: dict[int, str] = {}
        self.traces: dict[int, InvocationTrace] = {}
        """Of cancelled calls; containers report of a task after its call is over."""
        self._host = host
        self._left = calls
        self._random = random.Random(seed)
        self._by_deadline = by_deadline

    async def call(self) -> None:
        """Invoke and have it end, again and again."""
        while self._left > 0:
            self._left -= 1
            number = len(self.flows) + 1
            name = self.flows[number] = self._random.choice(list(FLOWS))
            stages = len(FLOWS[name])
            slow = self._random.randrange(stages + 1)  # none of them at times
            seconds = {f"s{place}": LONG_S if place == slow else BRIEF_S for place in range(stages)}
            given = {"n": NBYTES, "items": 3, "call": number, **seconds}
            after = self._random.uniform(0.0, 0.03)
            await (
                self._run_out(number, name, given, after)
                if self._by_deadline
                else self._cancel(number, name, given, after)
            )

    async def _cancel(self, number: int, name: str, given: dict[str, Any], after: float) -> None:
        invocation = await self._host.invoke(name, given)
        await asyncio.sleep(after)
        at = time.monotonic()
        invocation.cancel()
        if invocation.failure is None and invocation.is_over:
            self.counts.completed += 1
            return
        await invocation.wait_over()
        self._ended(number, at, invocation)

    async def _run_out(self, number: int, name: str, given: dict[str, Any], after: float) -> None:
        at = time.monotonic() + after
        try:
            invocation = await self._host.invoke(name, given, deadline=at)
        except ResourceExhausted:
            self.counts.refused += 1
            return
        await invocation.wait_over()
        failure = invocation.failure
        invocation.cancel()  # its caller is not interested
        if failure is None:
            self.counts.completed += 1
        elif failure.code is Code.RESOURCE_EXHAUSTED:
            self.counts.refused += 1
        else:
            assert failure.code is Code.DEADLINE_EXCEEDED, failure
            self._ended(number, at, invocation)

    def _ended(self, number: int, at: float, invocation: Invocation) -> None:
        self.counts.at[number] = at
        self.counts.cancelled += 1
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


async def storm(
    calls: int, log: Path, seed: int, lender: Server | None = None, *, by_deadline: bool, **settings: object
) -> Counts:
    """One storm against one host, which may know another."""
    sources = [workflow(name, str(log)) for name in FLOWS]
    given = {"writable_paths": (str(log.parent),), **MEMORY, **settings}
    async with engine(*sources, **given) as host:
        for name in FLOWS:
            await host.wait_ready(name)
        callers = Storm(host, calls, seed, by_deadline=by_deadline)
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
    refused = f", {counts.refused} refused" if counts.refused else ""
    words = f"{counts.cancelled} ended in {took_s:.0f} s, {counts.completed} were faster{refused}"
    print(f"{prefix}: {words}; {counts.raced} functions began within 10 ms")
    print(f"  began later: {counts.ran} by notes, {counts.reported} by reports; {counts.unnoted} began without a note")
    for (flow, place), found in sorted(counts.met.items()):
        each = [seconds * 1e3 for seconds in found]
        figures = f"median {statistics.median(each):.2f} ms, p99 {percentile(each, 99):.2f}, longest {max(each):.2f}"
        print(f"  {flow} {place + 1}: found running {len(each)} times, ended after {figures}")
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
    for prefix, by_deadline in ENDS.items():
        with noted() as log:
            begun = time.monotonic()
            with woken() as late:
                counts = await storm(300 if options.quick else 10_000, log, 11, by_deadline=by_deadline)
            add(report, prefix, counts, time.monotonic() - begun, late)
    lent = [f"{key}={number}" for key, number in MEMORY.items()]
    with second_host("", NAME, *lent) as second:
        print(f"two hosts: {second.words}")
        away = [(flow, STAGES[place]) for flow, stages in FLOWS.items() for place in range(len(stages))]
        places = tuple(f"{flow}.{stage}={NAME}" for flow, stage in away if flow in FOUND or stage != "first")
        settings = {"host_name": "a", "peers": (second.peer,), "peer_token": TOKEN, "placement": places}
        for prefix, by_deadline in ENDS.items():
            with noted() as log:
                begun, calls = time.monotonic(), 150 if options.quick else 2000
                with woken() as late:
                    counts = await storm(calls, log, 12, second.server, by_deadline=by_deadline, **settings)
                add(report, f"hosts_{prefix}", counts, time.monotonic() - begun, late)


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "")
    report = Report("cancelstorm")
    uvloop.run(measure(report, options))
    finish(report, options)


if __name__ == "__main__":
    main()
