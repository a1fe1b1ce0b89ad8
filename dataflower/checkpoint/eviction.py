"""Which models on the disk make room for a new one. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dataflower.errors import ResourceExhausted


@dataclass(frozen=True, slots=True)
class Stored:
    """A model on the disk. `again`: it can be fetched again. `last_used`: seconds since the epoch."""

    name: str
    nbytes: int
    pinned: bool
    again: bool
    last_used: float


def victims(models: Sequence[Stored], nbytes: int, cap_bytes: int, name: str = "") -> tuple[str, ...]:
    """Names of the models to remove so that `nbytes` more keep the disk tier under its cap: the longest unused first.

    Pinned models stay, and those that could not be fetched again. A cap of 0 is none. `name`: of the new model.

    Raises:
        ResourceExhausted: that does not make enough room; nothing should be removed then.
    """
    if not cap_bytes:
        return ()
    over = sum(model.nbytes for model in models) + nbytes - cap_bytes
    chosen: list[str] = []
    for model in sorted((m for m in models if m.again and not m.pinned), key=lambda m: (m.last_used, m.name)):
        if over <= 0:
            break
        chosen.append(model.name)
        over -= model.nbytes
    if over > 0:
        kept = ", ".join(
            f"{m.name} ({'pinned' if m.pinned else 'only copy'})" for m in models if m.pinned or not m.again
        )
        raise ResourceExhausted(
            f"{name or 'the model'} needs {nbytes / 2**20:.0f} MiB on disk, {over / 2**20:.0f} MiB more than the cap "
            f"of {cap_bytes / 2**20:.0f} MiB leaves{f'; kept: {kept}' if kept else ''} (models_disk_bytes)"
        )
    return tuple(chosen)
