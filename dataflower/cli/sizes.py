"""Sizes as people read them."""

from __future__ import annotations


def human(nbytes: float) -> str:
    """`269 MiB`, `1.2 GiB`: at most three digits that matter."""
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1000 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
