"""Ray actors: method calls joined by object references, numpy arrays, the zero-copy flag set."""

from __future__ import annotations

import time
from typing import Any

import ray

from bench.peers import ray_common as common
from bench.peers.protocol import Answer, timed


def submit(actors: list[Any], x: Any) -> Any:
    """The reference that a chain of calls will fill."""
    for actor in actors:
        x = actor.forward.remote(x)
    return x


def chain(stages: int, nbytes: int, rounds: int, warm: int) -> Answer:
    """Seconds for a chain."""
    actors, x = common.stages(stages), common.payload(nbytes)
    try:
        return timed(lambda: ray.get(submit(actors, x)), rounds, warm)
    finally:
        common.end(actors)


def throughput(stages: int, nbytes: int, in_flight: int, seconds: float) -> Answer:
    """Requests per second with so many in flight."""
    actors, x = common.stages(stages), common.payload(nbytes)
    try:
        waiting = [submit(actors, x) for _ in range(in_flight)]
        done, start = 0, time.perf_counter()
        warm_until, until = start + seconds / 4, start + seconds * 5 / 4
        while (now := time.perf_counter()) < until:
            if warm_until and now >= warm_until:
                done, start, warm_until = 0, now, 0.0
            ready, waiting = ray.wait(waiting, num_returns=1)
            ray.get(ready)
            done += len(ready)
            waiting += [submit(actors, x) for _ in ready]
        return {"rate": done / (now - start)}
    finally:
        common.end(actors)


def fanout(width: int, nbytes: int, rounds: int, warm: int) -> Answer:
    """Seconds for one actor, `width` that take its result, and one that takes all of theirs."""
    actors, x = common.stages(width + 2), common.payload(nbytes)
    first, last, middle = actors[0], actors[1], actors[2:]

    def once() -> None:
        made = first.forward.remote(x)
        assert ray.get(last.join.remote(*[actor.forward.remote(made) for actor in middle])) == width * nbytes

    try:
        return timed(once, rounds, warm)
    finally:
        common.end(actors)
