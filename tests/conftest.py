"""For every test: nothing may be left behind."""

import asyncio
import os
from collections.abc import Callable, Iterator

import pytest
import uvloop
from hypothesis import HealthCheck, settings

from dataflower.host.runtime import Runtime
from dataflower.testing import leaks

# How hard the property tests try: fast by default, `HYPOTHESIS_PROFILE=thorough` for a long look. In CI with the same
# examples every time, so that a red run is the fault of what has changed; everywhere else with new ones.
_COMMON = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
    "derandomize": bool(os.environ.get("CI")),
}
settings.register_profile("fast", max_examples=60, **_COMMON)
settings.register_profile("thorough", max_examples=3000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Descriptors, children and mapped memory are the same after the test as before it."""
    with leaks.watch():
        yield


@pytest.fixture(scope="session", autouse=True)
def no_slots() -> Iterator[None]:
    """A host on which nothing runs any more holds nothing when it is closed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runtime, "close", leaks.watched(Runtime.close))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_terminal() -> Iterator[None]:
    """Tables are as wide as in a pipe, however wide the terminal is from which the tests were started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COLUMNS", raising=False)
        patch.delenv("LINES", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def libuv() -> None:
    """Its first loop opens a pipe for signals that stays for the life of the process: no leak of any test."""
    uvloop.new_event_loop().close()


@pytest.fixture(scope="module")
def grpc_runtime() -> Iterator[None]:
    """gRPC's poller and its sockets belong to the process: kept from one test of a module to the next."""
    import grpc

    async def call(function: Callable[[], None]) -> None:  # they want a running loop
        function()

    asyncio.run(call(grpc.aio.init_grpc_aio))
    yield
    asyncio.run(call(grpc.aio.shutdown_grpc_aio))
