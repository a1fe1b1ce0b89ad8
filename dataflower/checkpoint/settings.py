"""What a store can be told; every default suits one laptop."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


def default_directory() -> Path:
    """`DATAFLOWER_MODELS_DIR`, else `models` in the cache folder (`DATAFLOWER_CACHE`, else `~/.cache/dataflower`)."""
    named = os.environ.get("DATAFLOWER_MODELS_DIR")
    cache = os.environ.get("DATAFLOWER_CACHE") or Path.home() / ".cache" / "dataflower"
    return Path(named).expanduser() if named else Path(cache).expanduser() / "models"


def default_memory_bytes() -> int:
    """Half of the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Settings of the tiers of weights. Sizes are bytes."""

    models_dir: Path = field(default_factory=default_directory)
    """The disk tier: a folder for each model."""
    models_disk_bytes: int = 0
    """Cap on the disk tier; 0: none. Models that can't be fetched again are never removed to keep it."""
    models_memory_bytes: int = field(default_factory=default_memory_bytes)
    """Cap on the host memory tier."""
    models_prefault_bytes: int = 0
    """Host memory to have ready for weights before the first are asked for."""
    models_threads: int = 6
    """Threads that read the disk or the network for one load."""
    models_device_bytes: int = 0
    """Cap on the weights on each device; 0: what the device has."""
    accelerators: str = "dataflower.checkpoint.cuda"
    """Module of the devices that weights can be brought to."""
    packer: str = "dataflower.host.packer"
    """Module that the store runs to lay weights out for this machine's processor."""
