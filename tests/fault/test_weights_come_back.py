"""kill -9 of the store: weights that were pinned, or held for calls to come, are loaded again though nobody asks."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from weights_for_tests import make

from dataflower import checkpoint
from dataflower.channel.link import Link
from dataflower.checkpoint import client
from dataflower.checkpoint.catalog import Catalog
from dataflower.checkpoint.disk import DiskTier
from dataflower.checkpoint.protocol import Hold, Statistics, decode_from_client
from dataflower.core.events import WeightsDropped, WeightsSized
from dataflower.host.holder import MOST_DEATHS, Holder
from dataflower.host.store import Store

pytestmark = pytest.mark.fault

PATIENCE_S = 30


class Host:
    """The store of a host, its holder, and what the core is told."""

    def __init__(self, config: checkpoint.StoreConfig) -> None:
        loop = asyncio.get_running_loop()
        self.told: asyncio.Queue[WeightsSized | WeightsDropped] = asyncio.Queue()
        self.store = Store(loop, config, None)
        self.holder = Holder(loop, lambda: self.store.door, config, self.told.put_nowait)

    async def hears(self) -> WeightsSized | WeightsDropped:
        return await asyncio.wait_for(self.told.get(), PATIENCE_S)

    async def kill(self) -> int:
        """SIGKILL to the store; gives what its number was."""
        killed = self.store.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE_S):
            while self.store.pid == killed:
                await asyncio.sleep(0.01)
        return killed

    async def statistics(self) -> Statistics:
        """Of a store that has started by itself."""
        async with asyncio.timeout(PATIENCE_S):
            while (found := await self.store.statistics()) is None:
                await asyncio.sleep(0.01)
        return found


@asynccontextmanager
async def running(config: checkpoint.StoreConfig) -> AsyncIterator[Host]:
    host = Host(config)
    try:
        yield host
    finally:
        host.holder.close()
        host.store.close()


def opened(host: Host, model: Path | str, monkeypatch: pytest.MonkeyPatch) -> checkpoint.Weights:
    monkeypatch.setenv(client.VARIABLE, client.door_name(host.store.door))
    return checkpoint.open(model)


async def test_held_weights_come_back_when_the_store_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = make(tmp_path / "m", 20)
    model = str(tmp_path / "m")
    async with running(checkpoint.StoreConfig(models_dir=tmp_path / "store")) as host:
        host.holder.hold([(model, 1.0)])
        first = await host.hears()
        assert isinstance(first, WeightsSized)
        assert first.held
        for _ in range(MOST_DEATHS):  # deaths count only while the weights are not there
            await host.kill()
            lost, back = await host.hears(), await host.hears()
            assert lost == WeightsSized(model, first.nbytes), "still wanted, and not there"
            assert isinstance(back, WeightsSized)
            assert (back.model, back.nbytes, back.held) == (model, first.nbytes, True)
        (found,) = (await host.statistics()).models
        assert (found.held, found.clients, found.ready) == (True, 0, True)
        with await asyncio.to_thread(opened, host, tmp_path / "m", monkeypatch) as weights:
            spec = weights.specs()["layer.weight"]
            data = weights.read("model.safetensors")[spec.offset : spec.offset + spec.nbytes]
            assert np.array_equal(np.frombuffer(data, np.float32), wanted["layer.weight"].ravel())
        assert (await host.statistics()).loads == 1
        del weights, data


async def test_pinned_weights_come_back_when_the_store_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = checkpoint.StoreConfig(models_dir=tmp_path / "store")
    catalog = Catalog(DiskTier(config))
    for name in ("kept", "other"):
        make(tmp_path / name, 8)
        catalog.register(tmp_path / name, name)
    catalog.pin("kept")
    async with running(config) as host:
        for name in ("kept", "other"):
            (await asyncio.to_thread(opened, host, name, monkeypatch)).close()
        await host.kill()
        async with asyncio.timeout(PATIENCE_S):
            found = await host.statistics()
            while not any(model.ready for model in found.models):
                await asyncio.sleep(0.02)
                found = await host.statistics()
        assert [(m.name, m.clients) for m in found.models] == [("kept", 0)]
        assert found.loads == 1


async def test_weights_that_made_room_are_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "held", 40)
    make(tmp_path / "needed", 40)
    config = checkpoint.StoreConfig(models_dir=tmp_path / "store", models_memory_bytes=64 << 20)
    async with running(config) as host:
        held = str(tmp_path / "held")
        host.holder.hold([(held, 1.0)])
        assert isinstance(await host.hears(), WeightsSized)
        weights = await asyncio.to_thread(opened, host, tmp_path / "needed", monkeypatch)
        assert await host.hears() == WeightsSized(held, 0)
        assert [(m.name, m.clients) for m in (await host.statistics()).models] == [("needed", 1)]
        weights.close()
        del weights


async def test_weights_that_stores_die_of_are_given_up(tmp_path: Path) -> None:
    inside, outside = Link.pair()
    told: asyncio.Queue[WeightsSized | WeightsDropped] = asyncio.Queue()
    asked: list[str] = []

    def die() -> None:
        """A store that ends when it is asked."""
        session = Link(inside.receive()[1][0])
        said = decode_from_client(session.receive()[0])
        assert isinstance(said, Hold)
        asked.append(said.model)
        session.close()

    config = checkpoint.StoreConfig(models_dir=tmp_path)
    holder = Holder(asyncio.get_running_loop(), outside.fileno, config, told.put_nowait)
    holder.hold([("m", 1.0)])
    for _ in range(MOST_DEATHS):
        await asyncio.to_thread(die)
    assert await asyncio.wait_for(told.get(), PATIENCE_S) == WeightsSized("m", 0)
    assert asked == ["m"] * MOST_DEATHS
    holder.close()
    inside.close()
    outside.close()


async def test_a_store_that_dies_while_it_is_told_to_drop_has_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: asyncio.Queue[object] = asyncio.Queue()
    config = checkpoint.StoreConfig(models_dir=tmp_path / "store")

    def enter(door: int) -> Link:
        """The store takes the knock, and is gone before the next word."""
        ours, theirs = Link.pair()
        theirs.close()
        return ours

    monkeypatch.setattr(client, "enter", enter)
    holder = Holder(asyncio.get_running_loop(), lambda: 0, config, told.put_nowait)
    holder.drop("m")
    assert await told.get() == WeightsDropped("m", True)
    holder.close()
