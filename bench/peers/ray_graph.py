"""Ray's compiled graph with numpy: channels in shared memory between actors, which spin while they wait."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.dag import InputNode

from bench.peers.protocol import Answer, timed
from bench.peers.ray_common import end, payload, stages


@contextmanager
def compiled(count: int, nbytes: int, in_flight: int = 1) -> Iterator[Any]:
    """A chain of `count` actors, compiled; taken down afterwards, since it spins."""
    actors = stages(count)
    with InputNode() as first:
        node: Any = first
        for actor in actors:
            node = actor.forward.bind(node)
    graph = node.experimental_compile(
        _buffer_size_bytes=nbytes + 65536, _max_inflight_executions=in_flight, _max_buffered_results=in_flight
    )
    try:
        yield graph
    finally:
        graph.teardown()
        end(actors)


def chain(stages: int, nbytes: int, rounds: int, warm: int) -> Answer:
    """Seconds for a chain of `stages`."""
    x = payload(nbytes)
    with compiled(stages, nbytes) as graph:
        return timed(lambda: ray.get(graph.execute(x)), rounds, warm)


def throughput(stages: int, nbytes: int, in_flight: int, seconds: float) -> Answer:
    """Requests per second with so many in flight."""
    x = payload(nbytes)
    with compiled(stages, nbytes, in_flight) as graph:
        waiting = deque(graph.execute(x) for _ in range(in_flight))
        done, start = 0, time.perf_counter()
        warm_until, until = start + seconds / 4, start + seconds * 5 / 4
        while (now := time.perf_counter()) < until:
            if warm_until and now >= warm_until:
                done, start, warm_until = 0, now, 0.0
            ray.get(waiting.popleft())
            done += 1
            waiting.append(graph.execute(x))
        rate = done / (now - start)
        for reference in waiting:
            ray.get(reference)
        return {"rate": rate}
