"""What a container takes of the machine's memory, from /proc."""

from __future__ import annotations

import contextlib
from pathlib import Path


def reset_peak(pid: int) -> None:
    """Let the kernel's high-water mark of a process begin anew; without the right to, it goes on from its start."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_bytes(pid: int) -> int | None:
    """The most that a process has had for itself: proportional share now, and by how much it was larger at its peak.

    Pages that forked containers share count for their part. None if the process is gone or /proc can't be read.
    """
    try:
        status = _fields(Path(f"/proc/{pid}/status").read_text())
        share = _fields(Path(f"/proc/{pid}/smaps_rollup").read_text())
    except OSError:
        return None
    if not {"VmHWM", "VmRSS"} <= status.keys() or "Pss" not in share:
        return None
    return share["Pss"] + max(0, status["VmHWM"] - status["VmRSS"])


def _fields(text: str) -> dict[str, int]:
    """`Name:   123 kB` lines, in bytes."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        parts = rest.split()
        if len(parts) == 2 and parts[1] == "kB":
            found[name] = int(parts[0]) * 1024
    return found
