"""Weights on a device: one copy for all processes, brought there by the store and gone with the last user."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from weights_for_tests import flip, make

from dataflower import checkpoint
from dataflower.channel.link import Link
from dataflower.checkpoint import client, protocol
from dataflower.checkpoint.expected import expected
from dataflower.checkpoint.protocol import Shelved
from dataflower.errors import Closed, InvalidArgument, NotFound, ResourceExhausted, WeightsInvalid
from dataflower.testing.answering import Answering
from dataflower.testing.fake_device import BYTES, NAME, POOR
from dataflower.testing.store_process import StoreProcess, running

torch = pytest.importorskip("torch")

USER = """
import ctypes, json, sys
import numpy
from dataflower import checkpoint
with checkpoint.open(sys.argv[1], device=sys.argv[2]) as weights:
    spec = weights.specs()["layer.weight"]
    address = weights._block.address + weights._places["model.safetensors"].offset + spec.offset
    array = numpy.frombuffer((ctypes.c_char * spec.nbytes).from_address(address), "f4")
    for line in sys.stdin:
        if line.strip() == "write":
            array[0] = 0
        print(json.dumps([weights.digest, float(array.astype("f8").sum())]), flush=True)
"""
"""(Without torch, which takes seconds to import.)"""


class User(Answering):
    """Another process that has weights on the device."""

    def __init__(self, store: StoreProcess, model: Path) -> None:
        super().__init__(USER, [str(model), NAME], [store.door])


@contextmanager
def users(store: StoreProcess, model: Path, count: int) -> Iterator[list[User]]:
    made = [User(store, model) for _ in range(count)]
    try:
        yield made
    finally:
        for user in made:
            user.close()


def settings(tmp_path: Path, **changes: Any) -> checkpoint.StoreConfig:
    return checkpoint.StoreConfig(
        models_dir=tmp_path / "store", accelerators="dataflower.testing.fake_device", **changes
    )


def shelf(store: StoreProcess) -> Shelved:
    (found,) = store.statistics().devices
    return found


def until(condition: Callable[[], bool]) -> None:
    """Wait for what follows a message or the end of a process."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def test_processes_share_one_copy_that_goes_with_the_last(tmp_path: Path) -> None:
    wanted = make(tmp_path / "m", 40)
    total = float(wanted["layer.weight"].astype(np.float64).sum())
    with running(settings(tmp_path)) as store, users(store, tmp_path / "m", 3) as (a, b, c):
        told = [user.say() for user in (a, b, c)]
        assert told[0] == told[1] == told[2]
        assert told[0][1] == pytest.approx(total)
        there = shelf(store)
        assert (there.device, [(m.clients, m.ready) for m in there.models]) == (NAME, [(3, True)])
        assert there.models[0].digest == told[0][0]
        nbytes = there.total_bytes - there.free_bytes
        assert 40 * 2**20 <= nbytes <= 41 * 2**20  # once
        statistics = store.statistics()
        assert (statistics.loads, [m.clients for m in statistics.models]) == (1, [0])  # the host's copy is not held
        assert [rate.source for rate in statistics.rates] == ["disk", "remote", NAME]
        assert statistics.rates[2].bandwidth == 0  # the copy went at the pace of the disk
        a.process.kill()
        until(lambda: shelf(store).models[0].clients == 2)
        assert b.say() == told[0]
        b.close()
        assert c.say() == told[0]
        c.close()
        until(lambda: not shelf(store).models)
        assert shelf(store).free_bytes == shelf(store).total_bytes
        with checkpoint.open(tmp_path / "m", device=NAME):
            measured = store.statistics().rates[2].bandwidth
            assert measured > 0  # this time it was in host memory
        assert expected(str(tmp_path / "m"), store.config).seconds is not None
        slower = expected(str(tmp_path / "m"), store.config, NAME)
        assert slower.nbytes is not None
        assert slower.seconds is not None
        assert slower.seconds >= slower.nbytes / measured * 0.999


@pytest.mark.parametrize("door", [True, False])
def test_who_waits_for_weights_on_a_device_hears_how_far_they_are(tmp_path: Path, door: bool) -> None:
    make(tmp_path / "m", 40)
    size = sum(file.stat().st_size for file in (tmp_path / "m").iterdir())
    told: list[int] = []
    again: list[int] = []
    if door:
        with running(settings(tmp_path)), checkpoint.open(tmp_path / "m", device=NAME, progress=told.append):
            checkpoint.open(tmp_path / "m", device=NAME, progress=again.append).close()
            assert again == [], "they were there"
    else:
        with checkpoint.open(tmp_path / "m", device=NAME, config=settings(tmp_path), progress=told.append):
            pass
    assert sum(told) == size
    assert all(nbytes > 0 for nbytes in told)


def test_weights_that_are_held_on_a_device_stay_there_until_functions_need_the_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BYTES, str(140 * 2**20))  # room for two
    for name in ("a", "b", "c"):
        make(tmp_path / name, 40)
    with running(settings(tmp_path)) as store:
        links = {name: wish(store, protocol.Hold(str(tmp_path / name), n, NAME)) for n, name in enumerate("ab", 1)}
        for link in links.values():
            assert isinstance(heard(link), protocol.Holding)
        assert [(m.clients, m.ready, m.held) for m in shelf(store).models] == [(0, True, True)] * 2
        with checkpoint.open(tmp_path / "b", device=NAME, progress=lambda _: pytest.fail("it was there")):
            pass
        assert len(shelf(store).models) == 2, "its last user has gone, who holds it has not"
        late = wish(store, protocol.Hold(str(tmp_path / "c"), 0.5, NAME))
        assert isinstance(heard(late), protocol.Refused), "less dense than what is there"
        with checkpoint.open(tmp_path / "c", device=NAME):
            refused = heard(links["a"])
            assert isinstance(refused, protocol.Refused)
            assert "room" in refused.message
        until(lambda: [m.held for m in shelf(store).models] == [True])
        for link in (*links.values(), late):
            link.close()
        until(lambda: not shelf(store).models)
        assert shelf(store).free_bytes == shelf(store).total_bytes


def test_weights_that_are_held_leave_where_others_took_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BYTES, str(100 * 2**20))  # room for two, where the cap knows of more
    for seed, name in enumerate("abc"):
        make(tmp_path / name, 40, seed=seed)
    make(tmp_path / "large", 120)
    with running(settings(tmp_path, models_device_bytes=2**30)) as store:
        links = {name: wish(store, protocol.Hold(str(tmp_path / name), n, NAME)) for n, name in enumerate("ab", 1)}
        for link in links.values():
            assert isinstance(heard(link), protocol.Holding)
        late = wish(store, protocol.Hold(str(tmp_path / "c"), 0.5, NAME))
        assert isinstance(heard(late), protocol.Refused), "less dense than what is there"
        with pytest.raises(ResourceExhausted, match="no room for 120 MiB"):
            checkpoint.open(tmp_path / "large", device=NAME)
        assert [m.held for m in shelf(store).models] == [True, True], "they would have left in vain"
        with checkpoint.open(tmp_path / "c", device=NAME) as weights:
            assert len(weights.tensors()) == 2
            refused = heard(links["a"])
            assert isinstance(refused, protocol.Refused)
            with checkpoint.open(tmp_path / "b", device=NAME):
                pass
        for link in (*links.values(), late):
            link.close()
        until(lambda: not shelf(store).models)
        assert shelf(store).free_bytes == shelf(store).total_bytes


def wish(store: StoreProcess, what: protocol.Hold) -> Link:
    link = client.enter(store.door)
    link.send(protocol.encode(what))
    return link


def heard(link: Link) -> protocol.FromStore:
    return protocol.decode_from_store(link.receive()[0])


@pytest.mark.parametrize("poor", ["0", "1"])
@pytest.mark.parametrize("door", [True, False])
def test_tensors_are_on_the_device_and_small_files_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, door: bool, poor: str
) -> None:
    monkeypatch.setenv(POOR, poor)
    wanted = make(tmp_path / "m", 40)
    if door:
        with running(settings(tmp_path)):
            check(tmp_path, checkpoint.open(tmp_path / "m", device=NAME), wanted, shared=True)
    else:
        config = settings(tmp_path)
        check(tmp_path, checkpoint.open(tmp_path / "m", device=NAME, config=config), wanted, shared=False)


def check(tmp_path: Path, weights: checkpoint.Weights, wanted: dict[str, np.ndarray], *, shared: bool) -> None:
    with checkpoint.open(tmp_path / "m", config=settings(tmp_path)) as host:
        assert weights.digest == host.digest
        assert weights.specs() == host.specs()
    del host
    assert (weights.shared, weights.torch_device) == (shared, "cpu")
    tensors = weights.tensors()
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {n: a.shape for n, a in wanted.items()}
    for name, tensor in tensors.items():
        assert np.array_equal(tensor.numpy(), wanted[name])
    assert bytes(weights.read("config.json")) == b'{"model_type": "none"}'
    assert (weights.config_dir / "config.json").is_file()
    with pytest.raises(InvalidArgument, match=r"model\.safetensors is on the device"):
        weights.read("model.safetensors")
    with pytest.raises(NotFound, match="has no file 'x'"):
        weights.read("x")
    weights.close()
    assert np.array_equal(tensors["layer.bias"].numpy(), wanted["layer.bias"])  # a tensor keeps the memory
    with pytest.raises(Closed):
        weights.tensors()


def test_a_user_that_writes_harms_itself_alone(tmp_path: Path) -> None:
    make(tmp_path / "m", 5)
    with running(settings(tmp_path)) as store, users(store, tmp_path / "m", 2) as (bad, good):
        before = good.say()
        assert bad.say() == before
        assert bad.say("write") is None
        assert bad.process.wait() < 0
        assert good.say() == before


def test_a_store_that_dies_leaves_users_theirs_and_the_next_begins_anew(tmp_path: Path) -> None:
    make(tmp_path / "m", 20)
    with running(settings(tmp_path)) as store, users(store, tmp_path / "m", 1) as (old,):
        before = old.say()
        store.kill()
        assert old.say() == before
        store.start()
        with users(store, tmp_path / "m", 1) as (new,):
            assert new.say() == before
            assert [m.clients for m in shelf(store).models] == [1]
            assert old.say() == before


def test_who_waits_when_the_store_dies_asks_the_next(tmp_path: Path) -> None:
    make(tmp_path / "m", 20)
    with running(settings(tmp_path)) as store:
        store.kill()
        opened: list[checkpoint.Weights] = []
        thread = threading.Thread(target=lambda: opened.append(checkpoint.open(tmp_path / "m", device=NAME)))
        thread.start()
        store.start()
        thread.join()
        assert len(opened[0].tensors()) == 2


def test_what_does_not_fit_is_refused_with_who_has_the_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "a", 40)
    make(tmp_path / "b", 40, seed=1)
    monkeypatch.setenv(BYTES, str(64 * 2**20))
    with running(settings(tmp_path)) as store:
        refused = pytest.raises(ResourceExhausted, match=r"b needs .* are in use or pinned: a .*\(1 users\)")
        with checkpoint.open(tmp_path / "a", device=NAME), refused:
            checkpoint.open(tmp_path / "b", device=NAME)
        until(lambda: not shelf(store).models)
        with checkpoint.open(tmp_path / "b", device=NAME) as weights:
            assert len(weights.tensors()) == 2
    monkeypatch.setenv(BYTES, str(32 * 2**20))
    with running(settings(tmp_path, models_device_bytes=2**30)) as store:  # others have taken the memory
        with pytest.raises(ResourceExhausted, match=r"fake:0 has no room for 40 MiB of weights: 32 of its 32 MiB"):
            checkpoint.open(tmp_path / "a", device=NAME)
        assert shelf(store).free_bytes == 32 * 2**20
        make(tmp_path / "c", 2)
        with checkpoint.open(tmp_path / "c", device=NAME) as weights:
            assert len(weights.tensors()) == 2


@pytest.mark.parametrize("door", [True, False])
def test_damaged_weights_never_come_onto_a_device(tmp_path: Path, door: bool) -> None:
    make(tmp_path / "m", 20)
    config = settings(tmp_path)
    checkpoint.open(tmp_path / "m", config=config).close()
    flip(tmp_path / "m" / "model.safetensors", 15 * 2**20)
    if door:
        with running(config) as store:
            with pytest.raises(WeightsInvalid, match="damaged in the chunk"):
                checkpoint.open(tmp_path / "m", device=NAME)
            until(lambda: shelf(store).free_bytes == shelf(store).total_bytes)
            flip(tmp_path / "m" / "model.safetensors", 15 * 2**20)
            with checkpoint.open(tmp_path / "m", device=NAME) as weights:
                assert len(weights.tensors()) == 2
    else:
        with pytest.raises(WeightsInvalid, match="damaged in the chunk"):
            checkpoint.open(tmp_path / "m", device=NAME, config=config)


def test_weights_come_from_afar_onto_a_device(tmp_path: Path) -> None:
    wanted = make(tmp_path / "origin" / "m", 20)
    url = f"file://{tmp_path}/origin/m"
    with running(settings(tmp_path)) as store, checkpoint.open(url, device=NAME) as weights:
        tensors = weights.tensors()
        for name, array in wanted.items():
            assert np.array_equal(tensors[name].numpy(), array)
        with checkpoint.open(url, device=NAME) as again:
            assert again.digest == weights.digest
            assert [m.clients for m in shelf(store).models] == [2]


def test_devices_that_are_not_there_are_named(tmp_path: Path) -> None:
    make(tmp_path / "m", 1)
    with running(settings(tmp_path)):
        with pytest.raises(NotFound, match="there is no device 'fake:7'"):
            checkpoint.open(tmp_path / "m", device="fake:7")
        with pytest.raises(NotFound, match="nowhere"):
            checkpoint.open("nowhere", device=NAME)
    real = checkpoint.StoreConfig(models_dir=tmp_path / "store")
    with pytest.raises(NotFound, match="say cpu, or cuda:0"):
        checkpoint.open(tmp_path / "m", device="gpu", config=real)
