"""Network namespaces for tests: made, entered and removed; without the rights or tools for them the test is skipped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import pytest

from dataflower.container.kernel import setns


class Lines(Protocol):
    """Namespaces and what joins them."""

    def make(self) -> None:
        """Raises subprocess.CalledProcessError where that is not possible."""

    def remove(self) -> None:
        """All of it, as far as it is there."""


L = TypeVar("L", bound=Lines)
NEW_NETWORK = 0x40000000


@contextmanager
def laid(lines: L, *tools: str) -> Iterator[L]:
    """Make them, and remove them in the end. `tools`: programs needed besides `ip` and `tc`."""
    needed = ("ip", "tc", *tools)
    if os.geteuid() or not all(map(shutil.which, needed)):
        pytest.skip(f"network namespaces need root and {', '.join(needed)}")
    try:
        try:
            lines.make()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces on this machine: {error.stderr}")
        yield lines
    finally:
        lines.remove()


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout


def within(namespace: str, test: Callable[[], Awaitable[None]]) -> None:
    """Run a test in a thread that lives in this network namespace."""
    failed: list[BaseException] = []

    def live() -> None:
        try:
            descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
            setns(descriptor, NEW_NETWORK)
            os.close(descriptor)

            async def main() -> None:
                await test()

            asyncio.run(main())
        except BaseException as error:  # for the thread that waits
            failed.append(error)

    thread = threading.Thread(target=live)
    thread.start()
    thread.join()
    with contextlib.suppress(ChildProcessError):  # what a killed lender left behind is this process's
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    if failed:
        raise failed[0]
