"""An application as arcs between moments: each module is an arc, and each moment lies after some and before others.

In this form stages one after the other are arcs in series, and alternatives that wait for each other are parallel arcs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dataflower.planner.application import Application


@dataclass(frozen=True, slots=True)
class Arc:
    """From moment `tail` to moment `head`; `module` is empty for a mere order without any work."""

    tail: int
    head: int
    module: str = ""


@dataclass(frozen=True, slots=True)
class Network:
    """Moments are numbered so that every arc goes upwards; 0 is the start, the last one the end."""

    moments: int
    arcs: tuple[Arc, ...]

    def until(self, latency_s: Mapping[str, float]) -> list[float]:
        """Longest way from the start to each moment."""
        found = [0.0] * self.moments
        for arc in sorted(self.arcs, key=lambda a: a.tail):
            found[arc.head] = max(found[arc.head], found[arc.tail] + latency_s.get(arc.module, 0.0))
        return found

    def after(self, latency_s: Mapping[str, float]) -> list[float]:
        """Longest way from each moment to the end."""
        found = [0.0] * self.moments
        for arc in sorted(self.arcs, key=lambda a: -a.head):
            found[arc.tail] = max(found[arc.tail], found[arc.head] + latency_s.get(arc.module, 0.0))
        return found


def network(application: Application) -> Network:
    """The arcs of an application, with as few moments as its order allows."""
    children = _without_shortcuts(application)
    parents: dict[str, list[str]] = {name: [] for name in application.order}
    for name, found in children.items():
        for child in found:
            parents[child].append(name)
    moment = _Moments()
    orders: list[tuple[str, str]] = []
    for name in application.order:
        if not parents[name]:
            moment.join("start", f"{name}<")
        if not children[name]:
            moment.join(f"{name}>", "end")
        together = {frozenset(parents[child]) for child in children[name]}
        mates = next(iter(together), frozenset())
        if len(together) == 1 and all(set(children[mate]) == set(children[name]) for mate in mates):
            for child in children[name]:
                moment.join(f"{name}>", f"{child}<")
        else:
            orders += [(f"{name}>", f"{child}<") for child in children[name]]
    ends = [(f"{name}<", f"{name}>", name) for name in application.order]
    ends += [(a, b, "") for a, b in orders]
    raw = [(moment.find(a), moment.find(b), name) for a, b, name in ends]
    number = _numbered(raw, moment.find("start"), moment.find("end"))
    return Network(len(number), tuple(Arc(number[a], number[b], name) for a, b, name in raw))


def _without_shortcuts(application: Application) -> dict[str, list[str]]:
    """Children of each module, without those that are also reached through another child."""
    below: dict[str, set[str]] = {}
    for name in reversed(application.order):
        below[name] = set(application.children[name]).union(*(below[c] for c in application.children[name]))
    return {
        name: [c for c in found if not any(c in below[other] for other in found)]
        for name, found in application.children.items()
    }


class _Moments:
    """Names that turned out to mean the same moment (union-find)."""

    def __init__(self) -> None:
        self._of: dict[str, str] = {}

    def find(self, name: str) -> str:
        while (up := self._of.setdefault(name, name)) != name:
            name = up
        return name

    def join(self, a: str, b: str) -> None:
        self._of[self.find(a)] = self.find(b)


def _numbered(arcs: list[tuple[str, str, str]], start: str, end: str) -> dict[str, int]:
    """Numbers in an order that every arc respects, the end last."""
    waiting: dict[str, int] = {start: 0, end: 0}
    leaving: dict[str, list[str]] = {}
    for tail, head, _ in arcs:
        waiting.setdefault(tail, 0)
        waiting[head] = waiting.get(head, 0) + 1
        leaving.setdefault(tail, []).append(head)
    ready = [start]
    number: dict[str, int] = {}
    while ready:
        name = ready.pop()
        number[name] = len(number)
        for head in leaving.get(name, ()):
            waiting[head] -= 1
            if waiting[head] == 0:
                ready.append(head)
    return number
