"""A store of weights in a process of its own, behind a door that the test holds: what a host is to its containers."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dataflower
from dataflower.channel.link import Link
from dataflower.checkpoint import client
from dataflower.checkpoint import main as program
from dataflower.checkpoint.protocol import Statistics
from dataflower.checkpoint.settings import StoreConfig


class StoreProcess:
    """Owns both ends of the door, and the process while one runs."""

    def __init__(self, config: StoreConfig) -> None:
        self.config = config
        self._inside, self._outside = Link.pair()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def door(self) -> int:
        """Descriptor of the clients' end."""
        return self._outside.fileno()

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the process; what came through the door before is answered then."""
        fd = self._inside.fileno()
        root = str(Path(dataflower.__file__).resolve().parent.parent)
        paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
        self._process = subprocess.Popen(program.command(fd, self.config), pass_fds=(fd,), env=environment)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def statistics(self) -> Statistics:
        """Ask it."""
        return client.statistics(self.door)

    def close(self) -> None:
        """End everything."""
        self.kill()
        self._inside.close()
        self._outside.close()


@contextmanager
def running(config: StoreConfig) -> Iterator[StoreProcess]:
    """A store whose door this process finds as a container would."""
    process = StoreProcess(config)
    before = os.environ.get(client.VARIABLE)
    os.environ[client.VARIABLE] = client.door_name(process.door)
    try:
        process.start()
        yield process
    finally:
        if before is None:
            del os.environ[client.VARIABLE]
        else:
            os.environ[client.VARIABLE] = before
        process.close()
