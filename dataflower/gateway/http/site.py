"""What every HTTP handler works with."""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.requests import Request

from dataflower.clock import Clock
from dataflower.errors import InvalidArgument
from dataflower.gateway.metrics import Metrics
from dataflower.gateway.settings import GatewayConfig
from dataflower.host.api import HostApi

DEADLINE = "x-dataflower-deadline-ms"
"""Header: how long the caller will wait, in milliseconds."""


@dataclass(slots=True)
class Site:
    """The host behind the door and how the door is set up. `started_at`: wall-clock seconds."""

    host: HostApi
    clock: Clock
    config: GatewayConfig
    version: str
    started_at: float
    metrics: Metrics
    closing: bool = field(default=False)
    """No longer ready: the server is about to stop."""

    @property
    def body_limit(self) -> int:
        """Longest body taken, in bytes."""
        return self.config.max_message_bytes

    def wait_s(self, request: Request) -> float | None:
        """How long the caller says it waits, in seconds; None if it does not say.

        Raises:
            InvalidArgument: the header is no positive number.
        """
        said = request.headers.get(DEADLINE)
        if said is None:
            return None
        try:
            milliseconds = float(said)
        except ValueError:
            milliseconds = float("nan")
        if not 0 < milliseconds < 1e12:
            raise InvalidArgument(f"{DEADLINE} must be a positive number of milliseconds, not {said!r}")
        return milliseconds / 1e3

    def deadline(self, request: Request) -> float | None:
        """The same as a CLOCK_MONOTONIC time."""
        wait_s = self.wait_s(request)
        return None if wait_s is None else self.clock.monotonic() + wait_s
