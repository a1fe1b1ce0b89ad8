"""The host's store of weights: a process that is started when the first container wants weights.

The host holds both ends of the door (`checkpoint.protocol`), through which it lets containers in. While no store runs,
it waits for somebody to knock, without taking the message; the store that it starts then finds it. If it dies, the next
one is started in the same way. So a host whose workflows use no models pays two descriptors.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
from asyncio import AbstractEventLoop, TimerHandle
from pathlib import Path

import dataflower
from dataflower import wire
from dataflower.channel.link import Link
from dataflower.checkpoint import client
from dataflower.checkpoint import main as program
from dataflower.checkpoint.notes import Notes
from dataflower.checkpoint.protocol import Statistics
from dataflower.checkpoint.settings import StoreConfig
from dataflower.errors import Closed, PeerGone, WouldBlock
from dataflower.host import logs
from dataflower.host.processes import describe_exit, kill_process

_log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 5.0


class Store:
    """One door, and at most one process behind it. For the loop's thread."""

    def __init__(self, loop: AbstractEventLoop, config: StoreConfig, log: Path | None) -> None:
        """`log`: file for what the process prints; None: the host's own output. Call `close`."""
        self._loop, self._config, self._log = loop, config, log
        self._inside, self._outside = Link.pair()
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._notes = os.memfd_create("dataflower-notes")
        self._backoff_s = 0.0
        self._timer: TimerHandle | None = None
        if config.models_prefault_bytes:
            self._start()
        else:
            self._wait()

    @property
    def door(self) -> int:
        """Descriptor of the end to knock on."""
        return self._outside.fileno()

    def let_in(self, process: int, version: int, descriptor: int) -> None:
        """A process wants to speak with the store over this socket, which is taken over."""
        try:
            # If that fails, be it for too many descriptors under way, its socket closes: as good as a store that died.
            with contextlib.suppress(WouldBlock, PeerGone, Closed, OSError):
                self._outside.send_nowait(wire.encode(wire.Knock(version, process)), (descriptor,))
        finally:
            os.close(descriptor)

    async def statistics(self) -> Statistics | None:
        """What it holds and how fast it loads; None while none runs."""
        return None if self._process is None else await asyncio.to_thread(client.statistics, self.door)

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return None if self._process is None else self._process.pid

    def _wait(self) -> None:
        self._timer = None
        self._loop.add_reader(self._inside.fileno(), self._start)

    def _start(self) -> None:
        self._loop.remove_reader(self._inside.fileno())
        fd = self._inside.fileno()
        root = str(Path(dataflower.__file__).resolve().parent.parent)
        paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        try:
            with contextlib.ExitStack() as stack:
                log = None if self._log is None else logs.open_log(self._log)
                if log is not None:
                    stack.callback(os.close, log)
                self._process = subprocess.Popen(
                    program.command(fd, self._config, self._notes),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(fd, self._notes),
                    start_new_session=True,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))},
                )
        except OSError as error:  # out of descriptors, memory or processes: later, perhaps
            _log.error("the store of weights could not be started: %s", error)
            self._again()
            return
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self._ended)

    def _ended(self) -> None:
        """Who has weights mapped keeps them; who waited for a load asks again, which starts the next one.

        What is pinned is loaded again without anybody's asking.
        """
        assert self._process is not None
        self._release()
        _log.error("the store of weights %s", describe_exit(self._process.wait()))
        self._process = None
        self._again()

    def _again(self) -> None:
        self._backoff_s = min(max(self._backoff_s * 2, FIRST_BACKOFF_S), LONGEST_BACKOFF_S)
        self._timer = self._loop.call_later(self._backoff_s, self._begin_again)

    def _begin_again(self) -> None:
        self._timer = None
        if Notes(self._notes).read():
            self._start()
        else:
            self._wait()

    def _release(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1

    def close(self) -> None:
        """End the process; idempotent. The containers should have ended."""
        if self._inside.fileno() < 0:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._inside.fileno())
        if self._process is not None:
            kill_process(self._pidfd)
            self._release()
            self._process.wait()
            self._process = None
        self._inside.close()
        self._outside.close()
        os.close(self._notes)
