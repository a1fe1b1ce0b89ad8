"""The processes below a process, as /proc lists them at one moment, and the CPU time that they have used."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    parent: int
    cpu_s: float


def descendants(root: int) -> list[int]:
    """Process ids below a process, parents before their children; `root` is not among them."""
    return [process.pid for process in _below(root, _all())]


def children(root: int) -> list[int]:
    """Process ids of those that a process has started itself, and that still run."""
    return [process.pid for process in _all() if process.parent == root]


def cpu_seconds(root: int) -> float:
    """CPU time so far, user and system, of a process and everything below it that still runs; 0.0 if it is gone."""
    everyone = _all()
    return sum(p.cpu_s for p in everyone if p.pid == root) + sum(p.cpu_s for p in _below(root, everyone))


def _below(root: int, everyone: list[_Process]) -> list[_Process]:
    children: dict[int, list[_Process]] = {}
    for process in everyone:
        children.setdefault(process.parent, []).append(process)
    found: list[_Process] = []
    todo = [root]
    while todo:
        row = [child for parent in todo for child in children.get(parent, ())]
        found += row
        todo = [process.pid for process in row]
    return found


def _all() -> list[_Process]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        found.append(_Process(int(entry.name), int(fields[1]), (int(fields[11]) + int(fields[12])) / _TICK))
    return found
