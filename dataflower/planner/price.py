"""What a second is worth at each module: the dual of the splitting problem with its staircases made convex.

With prices on latency, each module chooses for itself, and the sum is a lower bound for every plan. The best prices
are a flow from the start to the end of the application. It is found by raising the price along the longest path, in
steps at which a module changes its mind, until no path is longer than the SLO (successive longest paths, which is
exact).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from dataflower.planner.network import Network
from dataflower.planner.staircase import Staircase

_SAME = 1e-12
_MAX_ROUNDS = 20_000


@dataclass(frozen=True, slots=True)
class Prices:
    """The value of a second at each arc of the network, in cost for an hour, and in all.

    Attributes:
        flow: for each arc, in the order of the network.
        least: for each arc, the least of cost + flow x latency over its staircase.
        total: the sum over all ways through the network: what a second more of SLO would save.
        bound: no plan costs less.
        latency_s: latency of each module at these prices; every path is within the SLO.
    """

    flow: tuple[float, ...]
    least: tuple[float, ...]
    total: float
    bound: float
    latency_s: Mapping[str, float]


@dataclass(slots=True)
class _Line:
    """An arc with its convex staircase; `at` is the vertex that it would choose if the price rose a little."""

    tail: int
    head: int
    module: str
    latency: list[float]
    cost: list[float]
    slope: list[float] = field(init=False)
    """slope[i]: price at which vertices i - 1 and i are equally good; slope[0] is infinite."""
    flow: float = 0.0
    at: int = field(init=False)

    def __post_init__(self) -> None:
        pairs = zip(self.latency, self.latency[1:], self.cost, self.cost[1:], strict=False)
        self.slope = [math.inf, *((c0 - c1) / (l1 - l0) for l0, l1, c0, c1 in pairs)]
        self.at = len(self.latency) - 1

    def floor(self, vertex: int) -> float:
        """Lowest price at which `vertex` is chosen."""
        return self.slope[vertex + 1] if vertex + 1 < len(self.slope) else 0.0

    @property
    def lower(self) -> int:
        """The vertex that it would choose if the price fell a little."""
        return self.at + 1 if self.flow > 0 and self.at + 1 < len(self.slope) and self._at_floor else self.at

    @property
    def _at_floor(self) -> bool:
        return self.flow <= self.floor(self.at) * (1 + _SAME)

    @property
    def room(self) -> float:
        """By how much the price may rise before the choice changes."""
        return self.slope[self.at] - self.flow

    @property
    def give(self) -> float:
        """By how much it may fall."""
        return self.flow - self.floor(self.lower)

    def rise(self, amount: float) -> None:
        if amount >= self.room * (1 - _SAME):
            self.flow = self.slope[self.at]
            self.at -= 1
        else:
            self.flow += amount

    def fall(self, amount: float) -> None:
        lower, floor = self.lower, self.floor(self.lower)
        self.at = lower
        self.flow = floor if amount >= self.give * (1 - _SAME) else self.flow - amount


def prices(net: Network, curves: Mapping[str, Staircase], slo_s: float) -> Prices | None:
    """The best prices; None if even the quickest choices make a path longer than the SLO."""
    lines = [_Line(arc.tail, arc.head, arc.module, *_hull(curves.get(arc.module, ()))) for arc in net.arcs]
    quickest = {line.module: line.latency[0] for line in lines if line.module}
    if net.until(quickest)[-1] > slo_s * (1 + 1e-9):
        return None
    forward: list[list[_Line]] = [[] for _ in range(net.moments)]
    backward: list[list[_Line]] = [[] for _ in range(net.moments)]
    for line in lines:
        forward[line.tail].append(line)
        backward[line.head].append(line)
    total = 0.0
    for _ in range(_MAX_ROUNDS):
        length, way = _longest(net.moments, forward, backward)
        if length <= slo_s * (1 + 1e-9):
            break
        amount = min(line.room if up else line.give for line, up in way)
        if not math.isfinite(amount):
            break
        for line, up in way:
            (line.rise if up else line.fall)(amount)
        total += amount
    least = tuple(min(c + line.flow * t for t, c in zip(line.latency, line.cost, strict=True)) for line in lines)
    latency = {line.module: line.latency[line.at] for line in lines if line.module}
    return Prices(tuple(line.flow for line in lines), least, total, sum(least) - total * slo_s, latency)


def _hull(stairs: Staircase) -> tuple[list[float], list[float]]:
    """Latencies and costs of the steps on the lower convex hull; an arc without work takes no time, for nothing."""
    kept: list[tuple[float, float]] = []
    for stair in stairs:
        point = (stair.latency_s, stair.cost)
        while len(kept) > 1 and _above(kept[-2], kept[-1], point):
            kept.pop()
        kept.append(point)
    return [t for t, _ in kept] or [0.0], [c for _, c in kept] or [0.0]


def _above(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether `b` lies on or above the line from `a` to `c`."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])


def _longest(
    moments: int, forward: list[list[_Line]], backward: list[list[_Line]]
) -> tuple[float, list[tuple[_Line, bool]]]:
    """Longest way from start to end in the residual network, and its lines with whether they are taken upwards."""
    far = [-math.inf] * moments
    came: list[tuple[_Line, bool] | None] = [None] * moments
    far[0] = 0.0
    queue, queued = [0], [False] * moments
    for _ in range(moments * moments * 4):
        if not queue:
            break
        node = queue.pop(0)
        queued[node] = False
        steps = [(line, True, line.head, line.latency[line.at]) for line in forward[node]]
        steps += [(line, False, line.tail, -line.latency[line.lower]) for line in backward[node] if line.flow > 0]
        for line, up, to, length in steps:
            if far[node] + length > far[to] + 1e-12:
                far[to] = far[node] + length
                came[to] = (line, up)
                if not queued[to]:
                    queued[to] = True
                    queue.append(to)
    way, node = [], moments - 1
    while (step := came[node]) is not None and node != 0:
        way.append(step)
        node = step[0].tail if step[1] else step[0].head
    return far[-1], way
