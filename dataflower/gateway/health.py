"""`grpc.health.v1`: the server under the empty name, and an entry per workflow."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dataflower.host.api import HostApi

_Status = health_pb2.HealthCheckResponse


class HealthService(health_pb2_grpc.HealthServicer):
    """Answers from the host's own list, so that an entry exists exactly as long as its workflow."""

    def __init__(self, host: HostApi) -> None:
        self._host = host
        self._closing = False
        self._change = asyncio.Event()

    def notify(self) -> None:
        """Workflows came or went: wake those that watch."""
        self._change.set()
        self._change = asyncio.Event()

    def close(self) -> None:
        """Everything is NOT_SERVING from now on."""
        self._closing = True
        self.notify()

    def _status(self, name: str) -> Any:
        if name and all(status.name != name for status in self._host.workflows()):
            return _Status.SERVICE_UNKNOWN
        return _Status.NOT_SERVING if self._closing else _Status.SERVING

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Any:  # noqa: D102
        status = self._status(request.service)
        if status == _Status.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no workflow {request.service!r}")
        return _Status(status=status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: D102
        told = None
        while True:
            change = self._change
            status = self._status(request.service)
            if status != told:
                await context.write(_Status(status=status))
                told = status
            if self._closing:  # a watcher must not hold up the end
                return
            await change.wait()
