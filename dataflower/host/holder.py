"""Weights that stay in memory for the sake of calls to come: one socket to the store for each model.

A hold is a wish: the store drops it when functions need the room, and says so. Then the core is told, and whatever
opens the model next makes it known again. A store that dies says nothing: the wish stands, and the next store is told
of it at once.
"""

from __future__ import annotations

import logging
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import msgspec

from dataflower.channel.link import Link
from dataflower.checkpoint import client, protocol
from dataflower.checkpoint.disk import DiskTier
from dataflower.checkpoint.settings import StoreConfig
from dataflower.core.device.artifact import HOST, place_of
from dataflower.core.events import WeightsDropped, WeightsSized
from dataflower.errors import Closed, DataflowerError, EndOfStream, PeerGone, WouldBlock

_log = logging.getLogger(__name__)


MOST_DEATHS = 3
"""Of stores, one after the other, before a model was there: then it is given up, it may be what they die of."""


@dataclass(slots=True)
class _Hold:
    """`nbytes`: as it was there last, 0 until then. `deaths`: of stores since."""

    link: Link
    density: float
    nbytes: int = 0
    deaths: int = 0


class Holder:
    """For the loop's thread. Call `close`."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        door: Callable[[], int],
        config: StoreConfig,
        tell: Callable[[WeightsSized | WeightsDropped], None],
    ) -> None:
        """`door`: gives that of the store, not taken over. `tell`: called from the loop, never from within a method."""
        self._loop, self._door, self._config, self._tell = loop, door, config, tell
        self._holds: dict[str, _Hold] = {}
        self._drops: dict[str, Link] = {}
        """Models that are to leave memory, and the sockets on which the store will say that they have."""
        self._open = True

    def size(self, model: str) -> None:
        """Look up how large a model's files are, in a thread."""
        self._loop.run_in_executor(None, size_of, self._config, model).add_done_callback(partial(self._sized, model))

    def _sized(self, model: str, done: Future[int]) -> None:
        if self._open:
            self._tell(WeightsSized(model, done.result()))

    def hold(self, models: Iterable[tuple[str, float]]) -> None:
        """Hold these, (name, value of a byte), and no others."""
        wanted = dict(models)
        for model in [m for m in self._holds if m not in wanted]:
            self._let_go(model)
        for model, density in wanted.items():
            held = self._holds.get(model)
            if held is not None and held.density == density:
                continue
            try:
                if held is None:
                    self._ask(model, density)
                else:
                    held.density = density
                    held.link.send_nowait(_wish(model, density))
            except PeerGone:  # the store died a moment ago; `_listen` is about to see it
                continue
            except (DataflowerError, WouldBlock):
                self._loop.call_soon(self._lost, model)

    def _ask(self, model: str, density: float, nbytes: int = 0, deaths: int = 0) -> None:
        held = self._holds[model] = _Hold(client.enter(self._door()), density, nbytes, deaths)
        self._loop.add_reader(held.link.fileno(), self._listen, model)
        held.link.send_nowait(_wish(model, density))

    def _listen(self, model: str) -> None:
        try:
            payload, _ = self._holds[model].link.receive_nowait()
            answer = protocol.decode_from_store(payload)
        except WouldBlock:
            return
        except (EndOfStream, PeerGone):
            self._orphaned(model)
            return
        except (Closed, msgspec.DecodeError, UnicodeDecodeError):
            self._lost(model)
            return
        if isinstance(answer, protocol.Holding):
            held = self._holds[model]
            held.nbytes, held.deaths = answer.nbytes, 0
            self._tell(WeightsSized(model, answer.nbytes, answer.seconds, held=True))
        elif isinstance(answer, protocol.Refused):
            _log.info("the weights %s are not held: %s", model, answer.message)
            self._lost(model)

    def _orphaned(self, model: str) -> None:
        """The store died: ask the next one, which the question starts."""
        held = self._holds[model]
        if held.deaths + 1 >= MOST_DEATHS:
            _log.warning("the weights %s are not held: stores died %d times while they loaded", model, MOST_DEATHS)
            self._lost(model)
            return
        self._let_go(model)
        try:
            self._ask(model, held.density, held.nbytes, held.deaths + 1)
        except PeerGone:  # that one, too; `_listen` is about to see it
            return
        except (DataflowerError, WouldBlock):
            self._lost(model)
            return
        if held.nbytes:
            self._tell(WeightsSized(model, held.nbytes))  # wanted, and not there

    def _lost(self, model: str) -> None:
        if model in self._holds:
            self._let_go(model)
            self._tell(WeightsSized(model, 0))

    def _let_go(self, model: str) -> None:
        link = self._holds.pop(model).link
        self._loop.remove_reader(link.fileno())
        link.close()

    def drop(self, model: str) -> None:
        """Have a model out of memory as soon as nobody uses it; `WeightsDropped` is told then, or if it stays."""
        if model in self._drops:
            return
        try:
            link = self._drops[model] = client.enter(self._door())
            self._loop.add_reader(link.fileno(), self._hear, model)
            link.send_nowait(protocol.encode(protocol.Forget(model)))
        except PeerGone:  # the store died a moment ago; `_hear` is about to see it
            return
        except (DataflowerError, WouldBlock):
            self._loop.call_soon(self._dropped, model, False)

    def _hear(self, model: str) -> None:
        try:
            payload, _ = self._drops[model].receive_nowait()
            answer = protocol.decode_from_store(payload)
        except WouldBlock:
            return
        except (EndOfStream, PeerGone, Closed):  # the store died, and all that it held with it
            self._dropped(model, True)
            return
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._dropped(model, False)
            return
        self._dropped(model, isinstance(answer, protocol.Forgotten) and answer.gone)

    def _dropped(self, model: str, gone: bool) -> None:
        if not self._open:
            return
        if (link := self._drops.pop(model, None)) is not None:
            self._loop.remove_reader(link.fileno())
            link.close()
        self._tell(WeightsDropped(model, gone))

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        self._open = False
        for link in self._drops.values():
            self._loop.remove_reader(link.fileno())
            link.close()
        self._drops.clear()
        for model in list(self._holds):
            self._let_go(model)


def _wish(name: str, density: float) -> bytes:
    model, place = place_of(name)
    return protocol.encode(protocol.Hold(model, density, "" if place == HOST else place))


def size_of(config: StoreConfig, name: str) -> int:
    """Bytes of a model's files on the disk, wherever it is wanted.

    0 if there is no such model here (a URL is known once it was fetched).
    """
    try:
        return sum(nbytes for _, nbytes in DiskTier(config).locate(place_of(name)[0]).sizes())
    except (DataflowerError, OSError):
        return 0
