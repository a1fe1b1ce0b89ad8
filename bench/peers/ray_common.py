"""Ray on this machine, started by whoever asks first, and the payload of all Ray measurements."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

os.environ.setdefault("RAY_ENABLE_ZERO_COPY_TORCH_TENSORS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray

WORKERS = 16


def start() -> None:
    """Ray with room for all actors of a measurement (they need no core of their own)."""
    if not ray.is_initialized():
        ray.init(
            num_cpus=WORKERS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            object_store_memory=1 << 30,
        )


def payload(nbytes: int) -> Any:
    """An array of bytes."""
    return np.ones(nbytes, np.uint8)


@ray.remote(num_cpus=0)
class Stage:
    """A stage: hand on what came."""

    def forward(self, x: Any) -> Any:
        return x

    def join(self, *items: Any) -> int:
        return sum(len(item) for item in items)


def stages(count: int) -> list[Any]:
    """So many actors, ready."""
    start()
    made = [Stage.remote() for _ in range(count)]
    ray.get([actor.forward.remote(None) for actor in made])
    return made


def end(actors: list[Any]) -> None:
    """Stop them."""
    for actor in actors:
        ray.kill(actor)
