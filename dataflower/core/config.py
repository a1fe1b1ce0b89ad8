"""Limits of a host."""

from __future__ import annotations

from dataclasses import dataclass

from dataflower.core.pressure import Pressure


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """Limits of a host.

    `cpus`: the default for `max_replicas`. `cancel_grace_s`: how long a task that was told to stop may go on before its
    container is killed. `start_timeout_s`: how long a container may take to be ready, where its stage says nothing.
    `output_ttl_s`: how long results in shared memory wait for a caller who reads none of them.
    `preload`: get ready ahead what calls are likely to need, in at most `preload_memory_bytes`,
        and `preload_device_bytes` on each device.
    `pressure`: when a container that still sends gets its next task.
    `lines`: what is made on another host and read on others alone goes there straight; False: by way of this one.
    `device_batches`: batches of stages with weights that a device computes first tokens of at a time, 0: as many as
    there are containers; of at most `device_batch_size` tasks. `device_ttft_s`: objective for the first token of
    workflows that state none. `device_memory_bytes`: cap on containers and weights of such stages, 0: none.
    """

    cpus: int = 2
    max_containers: int = 64
    cancel_grace_s: float = 2.0
    start_timeout_s: float = 300.0
    output_ttl_s: float = 600.0
    seed: int = 0
    pressure: Pressure = Pressure.MEASURED
    lines: bool = True
    preload: bool = False
    preload_memory_bytes: int = 0
    preload_device_bytes: int = 0
    device_batches: int = 0
    device_batch_size: int = 16
    device_ttft_s: float = 2.0
    device_memory_bytes: int = 0
