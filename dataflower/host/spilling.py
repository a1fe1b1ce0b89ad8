"""Where the containers of a server put what their shared memory has no room for."""

from __future__ import annotations

import dataclasses
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


def own_folder(spill: Spill | None) -> Spill | None:
    """A folder of this server's own in which each container makes one: sandboxes see nothing that lies beside it."""
    if spill is None:
        return None
    for folder in Path(spill.directory).glob(f"{_PREFIX}*-*"):
        if not os.path.exists(f"/proc/{folder.name.removeprefix(_PREFIX).partition('-')[0]}"):
            shutil.rmtree(folder, ignore_errors=True)  # a server that was killed left it behind
    try:
        own = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=os.path.abspath(spill.directory))
    except OSError as error:
        _log.warning("nothing can be spilled to disk: %s", error)
        return None
    return dataclasses.replace(spill, directory=own)
