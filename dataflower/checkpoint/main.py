"""The process of a host's store.

python -m dataflower.checkpoint.main --door FD --config JSON
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from dataflower.channel.link import Link
from dataflower.checkpoint.notes import Notes
from dataflower.checkpoint.settings import StoreConfig
from dataflower.checkpoint.store import Store
from dataflower.clock import SystemClock

_PR_SET_PDEATHSIG = 1


def command(door: int, config: StoreConfig, notes: int | None = None) -> list[str]:
    """The command line of a store whose end of the door it inherits as descriptor `door`, and `notes` (`Notes`)."""
    settings = msgspec.json.encode(config, enc_hook=str).decode()
    given = [] if notes is None else ["--notes", str(notes)]
    program = [sys.executable, "-P", "-m", "dataflower.checkpoint.main"]
    return [*program, "--door", str(door), "--config", settings, *given]


def _path(kind: type[Any], value: Any) -> Path:
    assert kind is Path
    return Path(value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run as the process that the host starts."""
    parser = argparse.ArgumentParser(prog="python -m dataflower.checkpoint.main", description=__doc__)
    parser.add_argument("--door", type=int, required=True, help="inherited SEQPACKET socket")
    parser.add_argument("--config", default="{}", help="settings as JSON")
    parser.add_argument("--notes", type=int, help="inherited memory: what the store before kept for good")
    options = parser.parse_args(arguments)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # the door tells as well, unless somebody kept it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the host
    for fd in (options.door, options.notes):
        if fd is not None:
            os.set_inheritable(fd, False)
    config = msgspec.json.decode(options.config, type=StoreConfig, dec_hook=_path)
    notes = None if options.notes is None else Notes(options.notes)
    Store(Link(options.door), config, SystemClock(), notes).serve()
    os._exit(0)  # threads that fetch may be at it for long; what they have fetched is kept


if __name__ == "__main__":
    main()
