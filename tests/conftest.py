"""For every test: nothing may be left behind."""

from collections.abc import Iterator

import pytest

from dataflower.testing import leaks


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Descriptors, children and mapped memory are the same after the test as before it."""
    with leaks.watch():
        yield
