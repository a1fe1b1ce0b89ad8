"""Where the containers of a server put what their shared memory has no room for."""

from __future__ import annotations

import dataclasses
import fcntl
import logging
import os
import shutil
import tempfile
from pathlib import Path

from dataflower.channel.segment import Spill, device_of
from dataflower.host.settings import HostConfig

_log = logging.getLogger(__name__)

_PREFIX = "dataflower-spill-"


def spill_of(config: HostConfig) -> Spill | None:
    """Where containers may go on when their memory is full; None if they may not, or can't."""
    if config.spill_dir is None or not config.container_spill_bytes:
        return None
    directory = str(config.spill_dir)
    try:
        return Spill(directory, config.container_spill_bytes, device_of(directory))
    except OSError as error:
        _log.info("nothing can be spilled to %s (setting spill_dir): %s", directory, error)
        return None


class SpillFolder:
    """A folder of this server's own in which each container has one: sandboxes see nothing that lies beside it.

    It is locked (flock) as long as its server lives, whatever becomes of that: a folder that nobody has locked was left
    behind, and the next server there removes it.
    """

    def __init__(self, spill: Spill) -> None:
        """Beside those of other servers in the directory of `spill`. Raises OSError."""
        parent = os.path.abspath(spill.directory)
        for left in Path(parent).glob(f"{_PREFIX}*"):
            _remove_left(left)
        directory = self._lock = None
        while self._lock is None:  # whoever came by before it was locked took it for left behind
            directory = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent)
            self._lock = _locked(directory)
        assert directory is not None
        self.spill = dataclasses.replace(spill, directory=directory)

    def close(self) -> None:
        """Remove it, with all that lies in it."""
        shutil.rmtree(self.spill.directory, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def own_folder(spill: Spill | None) -> SpillFolder | None:
    """A new one; None if containers may not spill, or can't."""
    if spill is None:
        return None
    try:
        return SpillFolder(spill)
    except OSError as error:
        _log.warning("nothing can be spilled to disk: %s", error)
        return None


def _remove_left(folder: Path) -> None:
    try:
        lock = _locked(str(folder))
    except OSError:  # another user's, or no folder
        return
    if lock is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked(folder: str) -> int | None:
    """A descriptor that holds the lock of a folder; None if another does, or the folder has gone. Raises OSError."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            return descriptor
    except BlockingIOError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
