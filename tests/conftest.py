"""For every test: nothing may be left behind."""

from collections.abc import Iterator

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
