"""For every test: nothing may be left behind."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
import uvloop

from dataflower.testing import leaks


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Descriptors, children and mapped memory are the same after the test as before it."""
    with leaks.watch():
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
