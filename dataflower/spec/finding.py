"""What a check found, before anyone knows where in which file it stands."""

from __future__ import annotations

from dataclasses import dataclass

from dataflower.spec.tree import Path


@dataclass(frozen=True, slots=True)
class Finding:
    """`path` leads through the keys of the workflow file; `key`: blame the key rather than its value."""

    path: Path
    message: str
    hint: str = ""
    key: bool = False
