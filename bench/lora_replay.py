"""Requests for several functions on one machine, replayed: who is ready when, who waits, what the memory costs. Pure.

The same policy serves both kinds of functions (`core.device.turns`, the production one); they differ in what is given:
how long a start takes and what is held in memory. A function's container starts with its first request and stays for
`keep_s` after its last. What is held costs by the second, the shared backbone for the whole time, idle or not.
"""

from __future__ import annotations

import csv
import functools
import heapq
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from dataflower.core.device.turns import Turns, ordered
from dataflower.core.device.window import Latency

GB = 1e9


@dataclass(frozen=True, slots=True)
class Request:
    """A request at `at` seconds for function number `function`."""

    at: float
    function: int


@dataclass(frozen=True, slots=True)
class Kind:
    """How functions are kept. Seconds and bytes. `batch_s`: from the first token of a batch to its last."""

    start_s: float
    own_bytes: float
    shared_bytes: float
    first: Latency
    batch_s: float


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of it. `gb_s`: memory held, by time."""

    requests: int
    good: int
    cold: int
    gb_s: float

    @property
    def cost(self) -> float:
        """GB-seconds for each request that kept the objective."""
        return self.gb_s / self.good if self.good else float("inf")


def bursty(seed: int, functions: int, seconds: float, gap_s: float, cv: float = 5.0) -> list[Request]:
    """Gaps of a Gamma distribution with this coefficient of variation: above 4 counts as bursty in the paper."""
    chance = random.Random(seed)
    shape = 1 / cv**2
    found = []
    for function in range(functions):
        at = chance.uniform(0, gap_s)
        while at < seconds:
            found.append(Request(at, function))
            at += chance.gammavariate(shape, gap_s / shape)
    return sorted(found, key=lambda request: request.at)


def recorded(path: Path, seed: int, functions: int) -> list[Request]:
    """Requests of a CSV file with a column TIMESTAMP; bursts stay together: each second's go to one function.

    Raises:
        ValueError: there is no such column, or a time that can't be read; the message has the line.
    """
    chance = random.Random(seed)
    found: list[Request] = []
    owner: dict[int, int] = {}
    with open(path, newline="") as file:
        rows = csv.DictReader(file)
        for row in rows:
            try:
                at = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
            except (KeyError, ValueError, TypeError):
                raise ValueError(f"{path}, line {rows.line_num}: no TIMESTAMP like 2023-11-16 18:17:03.97") from None
            found.append(Request(at, owner.setdefault(int(at), chance.randrange(functions))))
    first = min((request.at for request in found), default=0.0)
    return sorted((Request(r.at - first, r.function) for r in found), key=lambda request: request.at)


def replay(
    requests: Sequence[Request], kind: Kind, *, slo_s: float, keep_s: float, slots: int = 1, most: int = 8
) -> Replayed:
    """Serve all of them."""
    return _Replay(requests, kind, slo_s, keep_s, slots, most).run()


@dataclass(slots=True)
class _Container:
    since: float
    ready: float
    busy: int = 0
    idle_since: float = 0.0


class _Replay:
    def __init__(
        self, requests: Sequence[Request], kind: Kind, slo_s: float, keep_s: float, slots: int, most: int
    ) -> None:
        self._requests, self._kind, self._slo_s, self._keep_s = requests, kind, slo_s, keep_s
        self._turns: Turns[int] = Turns(slots)
        self._most = most
        self._events: list[tuple[float, int, str, int]] = []
        self._order = itertools.count()
        self._containers: dict[int, _Container] = {}
        self._good = self._cold = 0
        self._byte_s = 0.0
        for number in {request.function for request in requests}:
            self._turns.know(ordered(str(number), slo_s, kind.first, most=most))

    def run(self) -> Replayed:
        for index, request in enumerate(self._requests):
            self._at(request.at, "request", index)
        now = 0.0
        while self._events:
            now, _, what, number = heapq.heappop(self._events)
            getattr(self, f"_{what}")(now, number)
            while (batch := self._turns.take(now, functools.partial(self._room, now))) is not None:
                function = int(batch.function)
                self._containers[function].busy += 1
                first_s = self._kind.first.of(len(batch.items))  # one slot is one core: they don't slow each other
                self._good += sum(now + first_s - self._requests[i].at <= self._slo_s for i in batch.items)
                self._at(now + first_s + self._kind.batch_s, "over", function)
            if (wake := self._turns.wake(now)) < float("inf"):
                self._at(wake, "look", 0)
        gb_s = (self._byte_s + self._kind.shared_bytes * now) / GB
        return Replayed(len(self._requests), self._good, self._cold, gb_s)

    def _at(self, time: float, what: str, number: int) -> None:
        heapq.heappush(self._events, (time, next(self._order), what, number))

    def _room(self, now: float, name: str) -> int:
        container = self._containers.get(int(name))
        return self._most if container is not None and container.ready <= now else 0

    def _request(self, now: float, index: int) -> None:
        function = self._requests[index].function
        if function not in self._containers:
            self._cold += 1
            self._containers[function] = _Container(now, now + self._kind.start_s, 0, now)
            self._at(now + self._kind.start_s, "look", function)
        self._turns.add(str(function), index, now)

    def _over(self, now: float, function: int) -> None:
        self._turns.over()
        container = self._containers[function]
        container.busy -= 1
        container.idle_since = now
        self._at(now + self._keep_s, "leave", function)

    def _leave(self, now: float, function: int) -> None:
        container = self._containers.get(function)
        waiting = self._turns.waiting(str(function))
        if container is None or container.busy or waiting or container.idle_since + self._keep_s > now + 1e-9:
            return
        self._byte_s += (now - container.since) * self._kind.own_bytes
        del self._containers[function]

    def _look(self, now: float, function: int) -> None:
        """Something may start now; what does is found out by the caller."""
