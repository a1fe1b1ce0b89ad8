"""A device that functions share, as people see it."""

from __future__ import annotations

from dataclasses import dataclass

from dataflower.core.device.window import Latency, Window


@dataclass(frozen=True, slots=True)
class Sharer:
    """A function of a device: so many tasks of it wait. `latency` None: nothing of it has run yet."""

    workflow: str
    stage: str
    waiting: int
    slo_s: float
    latency: Latency | None
    window: Window


@dataclass(frozen=True, slots=True)
class DeviceState:
    """A device: `running` batches have it, of at most `slots`, and `batches` have ever had it.

    Attributes:
        cap_bytes: what its functions may take of memory, containers and weights together; 0: as much as there is.
        used_bytes: what they take.
        offloaded: artifacts that had to leave for others so far.
    """

    name: str
    slots: int
    running: int
    batches: int
    sharers: tuple[Sharer, ...]
    cap_bytes: int = 0
    used_bytes: int = 0
    offloaded: int = 0
