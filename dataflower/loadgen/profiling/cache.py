"""Measurements kept between runs, each under the digest of what it depends on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflower.loadgen.profiling.digest import file_digests


def default_folder() -> Path:
    """`DATAFLOWER_CACHE/profiles`, else `~/.cache/dataflower/profiles`."""
    base = os.environ.get("DATAFLOWER_CACHE") or Path.home() / ".cache" / "dataflower"
    return Path(base).expanduser() / "profiles"


class Cache:
    """One small JSON file for each entry. An entry holds as long as the files that it names have not changed."""

    def __init__(self, folder: Path | None) -> None:
        """`folder` None: nothing is kept, nothing is found."""
        self._folder = folder

    def get(self, key: str) -> dict[str, Any] | None:
        """What was put, unless a file that it depends on is another now."""
        if self._folder is None:
            return None
        try:
            entry = json.loads((self._folder / f"{key}.json").read_text())
        except (OSError, ValueError):
            return None
        if not isinstance(entry, dict) or not isinstance(entry.get("files"), dict) or "value" not in entry:
            return None
        files: dict[str, str] = entry["files"]
        return entry["value"] if file_digests(files) == files and all(files.values()) else None

    def put(self, key: str, value: Mapping[str, Any], files: Mapping[str, str]) -> None:
        """Keep a value that depends on these files (name -> content digest)."""
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        made = self._folder / f".{key}.{os.getpid()}"
        made.write_text(json.dumps({"files": dict(files), "value": dict(value)}))
        made.replace(self._folder / f"{key}.json")
