"""Adapters that came while the server ran, kept from one server to the next: a small file in the state directory."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

_log = logging.getLogger(__name__)

FILE = "adapters.json"


class Loaded(msgspec.Struct, frozen=True):
    """An adapter that came by `load_lora_adapter`. `generation` grows each time its path is to be read anew."""

    name: str
    workflow: str
    path: str
    generation: int

    @property
    def reference(self) -> dict[str, Any]:
        """As a chat stage takes it."""
        return {"name": self.name, "path": self.path, "generation": self.generation}


class Kept:
    """The file, or nothing where there is no state directory."""

    def __init__(self, state_dir: Path | None) -> None:
        self._path = None if state_dir is None else state_dir / FILE

    def read(self) -> tuple[Loaded, ...]:
        """What the last server had. A file that can't be read is set aside, with a word in the log."""
        if self._path is None:
            return ()
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=tuple[Loaded, ...])
        except FileNotFoundError:
            return ()
        except (msgspec.DecodeError, OSError, UnicodeDecodeError) as error:
            aside = self._path.with_suffix(".json.corrupt")
            with suppress(OSError):
                self._path.replace(aside)
            _log.error("%s can't be read (%s): set aside as %s, no adapters are loaded", self._path, error, aside)
            return ()

    def write(self, loaded: Iterable[Loaded]) -> None:
        """All that are loaded now, whole or not at all; blocks. Raises OSError if the disk is full or fails."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fd, scratch = tempfile.mkstemp(prefix=f".{FILE}.", dir=self._path.parent)
        try:
            with open(fd, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(tuple(loaded)), indent=1) + b"\n")
                file.flush()
                os.fsync(fd)
            os.replace(scratch, self._path)
        except BaseException:
            with suppress(OSError):
                os.unlink(scratch)
            raise
