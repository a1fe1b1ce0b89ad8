"""Ray Serve: deployments joined by handles; a response goes from one to the next without passing the caller."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from bench.peers.protocol import Answer
from bench.peers.ray_common import payload, start

from ray import serve as ray_serve  # isort: skip  (after the settings above)


@ray_serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})
class Stage:
    """A stage: hand on what came."""

    async def __call__(self, x: Any) -> Any:
        return x


_handles: dict[int, Any] = {}


def handles(count: int) -> list[Any]:
    """So many deployments, ready; they stay for the next measurement."""
    start()
    for number in range(count):
        if number not in _handles:
            app = Stage.options(name=f"stage{number}").bind()
            _handles[number] = ray_serve.run(app, name=f"app{number}", route_prefix=None)
    return [_handles[number] for number in range(count)]


def submit(chained: list[Any], x: Any) -> Any:
    """The response of the last of them."""
    for handle in chained:
        x = handle.remote(x)
    return x


def throughput(stages: int, nbytes: int, in_flight: int, seconds: float) -> Answer:
    """Requests per second with so many in flight."""
    chained, x = handles(stages), payload(nbytes)
    done = 0
    stop = False

    async def client() -> None:
        nonlocal done
        while not stop:
            await submit(chained, x)
            done += 1

    async def run() -> float:
        nonlocal done, stop
        clients = [asyncio.create_task(client()) for _ in range(in_flight)]
        await asyncio.sleep(seconds / 4)
        done, begin = 0, time.perf_counter()
        await asyncio.sleep(seconds)
        rate = done / (time.perf_counter() - begin)
        stop = True
        await asyncio.gather(*clients)
        return rate

    return {"rate": asyncio.run(run())}
