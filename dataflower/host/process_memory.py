"""How much memory a process takes, as the kernel counts it."""

from __future__ import annotations

from pathlib import Path


def private_bytes(pid: int) -> int:
    """Memory that a process shares with nobody, 0 if that can't be told (it is gone, or another user's)."""
    return sum(nbytes for name, nbytes in _memory(pid) if name.startswith("Private_"))


def anonymous_bytes(pid: int) -> int:
    """Memory that a process has written, also where children that it forked share it; 0 if that can't be told."""
    return sum(nbytes for name, nbytes in _memory(pid) if name == "Anonymous:")


def _memory(pid: int) -> list[tuple[str, int]]:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return []
    fields = (line.split() for line in lines)
    return [(f[0], int(f[1]) * 1024) for f in fields if len(f) == 3 and f[2] == "kB"]
