"""A host in this process: what `run` and `serve` stand on."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

from dataflower.host.api import HostApi
from dataflower.host.heap import spare_the_collector
from dataflower.host.settings import HostConfig
from dataflower.spec.workflow import Workflow

T = TypeVar("T")

MOST_FILES = 1 << 17
"""Enough for any host; some systems allow a billion, for which libraries then make tables."""

_STOPS = (signal.SIGTERM, signal.SIGHUP)


class LocalHost(HostApi, Protocol):
    """A host whose life this process decides about."""

    def drain(self) -> None:
        """Take no new invocations."""
        ...

    @property
    def peer_port(self) -> int | None:
        """Where other hosts may come in; None if they may not."""
        ...

    async def close(self, drain_timeout_s: float | None = None) -> None:
        """Drain, then end every process."""
        ...


@asynccontextmanager
async def open_host(config: HostConfig, load: Callable[[str, str], Workflow] | None = None) -> AsyncIterator[LocalHost]:
    """A running host; leaving the block drains and closes it. `load(text, name)` reads those in its state directory."""
    from dataflower.host.runtime import Runtime

    raise_file_limit()
    async with Runtime(config, load=load) as runtime:
        spare_the_collector()
        yield runtime


def raise_file_limit() -> None:
    """Let this process have as many files open as it may: containers, connections and shared memory take some each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    with contextlib.suppress(OSError, ValueError):  # some systems say less than they mean
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end on uvloop; Ctrl-C, SIGTERM and SIGHUP cancel it and raise KeyboardInterrupt."""
    import uvloop

    before = {number: signal.getsignal(number) for number in _STOPS}
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_stoppable(main))
    finally:
        for number, handler in before.items():  # uvloop leaves its own, which do nothing once it is closed
            signal.signal(number, handler)


async def _stoppable(main: Coroutine[Any, Any, T]) -> T:
    loop = asyncio.get_running_loop()
    running = asyncio.ensure_future(main)
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        running.cancel()

    for number in _STOPS:
        loop.add_signal_handler(number, stop)
    try:
        return await running
    except asyncio.CancelledError:
        if stopped:
            raise KeyboardInterrupt from None
        raise
