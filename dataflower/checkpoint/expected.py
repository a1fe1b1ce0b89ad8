"""How long a start on this machine would wait for weights, as far as anybody can tell before it."""

from __future__ import annotations

from dataclasses import dataclass

from dataflower.checkpoint.accelerator import HOST
from dataflower.checkpoint.disk import DiskTier
from dataflower.checkpoint.estimate import Lane, Tier, load_time
from dataflower.checkpoint.plan import name_of
from dataflower.checkpoint.rates import Rates
from dataflower.checkpoint.settings import StoreConfig
from dataflower.checkpoint.sources import is_url
from dataflower.errors import NotFound


@dataclass(frozen=True, slots=True)
class Expected:
    """A load of weights into the host's memory, or onto a device.

    Attributes:
        tier: the nearest one that surely has them: what the memory holds, only a running server knows.
        nbytes: of all files; None = nobody asked the source yet.
        seconds: until they could be used; None = how fast the tier is has not been measured.
    """

    tier: Tier
    nbytes: int | None
    seconds: float | None


def expected(model: str, config: StoreConfig, device: str = HOST) -> Expected:
    """For a name, folder, file or URL, and where it is wanted. Nothing is fetched or read but sizes.

    Raises:
        NotFound: there is no such model; the message names similar ones.
        WeightsInvalid: its files contradict each other.
    """
    disk, rates = DiskTier(config), Rates(config.models_dir)
    name = name_of(disk, model) if is_url(model) else model
    lanes = {tier: Lane(rates.bandwidth(source)) for tier, source in ((Tier.REMOTE, "remote"), (Tier.DISK, "disk"))}
    lanes[Tier.MEMORY] = Lane(rates.bandwidth(device))
    to = Tier.MEMORY if device == HOST else Tier.DEVICE
    try:
        nbytes = sum(nbytes for _, nbytes in disk.locate(name).sizes())
    except NotFound:
        if not is_url(model):
            raise
        return Expected(Tier.REMOTE, None, None)
    try:
        return Expected(Tier.DISK, nbytes, load_time(nbytes, Tier.DISK, lanes, to))
    except KeyError:
        return Expected(Tier.DISK, nbytes, None)
