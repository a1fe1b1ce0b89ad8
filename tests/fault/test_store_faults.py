"""The store of weights dies, runs out of room, or finds harmed files: an error or the right weights, never others."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from weights_for_tests import make

from dataflower import checkpoint
from dataflower.channel.link import Link
from dataflower.checkpoint import client
from dataflower.checkpoint.protocol import decode_from_client
from dataflower.errors import Unavailable
from dataflower.testing.store_process import running

pytestmark = pytest.mark.fault


def same(weights: checkpoint.Weights, wanted: dict[str, np.ndarray]) -> bool:
    spec = weights.specs()["layer.weight"]
    data = weights.read("model.safetensors")[spec.offset : spec.offset + spec.nbytes]
    return np.array_equal(np.frombuffer(data, np.float32), wanted["layer.weight"].ravel())


def test_kill_in_the_middle_of_a_load(tmp_path: Path) -> None:
    wanted = make(tmp_path / "m", 64)
    killed: list[int] = []

    def kill(nbytes: int) -> None:
        if not killed:
            killed.append(store.pid)
            store.kill()
            store.start()

    with running(checkpoint.StoreConfig(models_dir=tmp_path / "store")) as store:
        with checkpoint.open(tmp_path / "m", progress=kill) as weights:
            assert killed
            assert store.pid not in killed
            assert same(weights, wanted)
        del weights


def test_what_is_mapped_survives_the_store(tmp_path: Path) -> None:
    wanted = make(tmp_path / "m", 20)
    with running(checkpoint.StoreConfig(models_dir=tmp_path / "store")) as store:
        weights = checkpoint.open(tmp_path / "m")
        store.kill()
        assert same(weights, wanted)
        store.start()
        with checkpoint.open(tmp_path / "m") as again:
            assert again.digest == weights.digest
        weights.close()
        del weights, again


def test_a_store_that_always_dies_is_an_error(tmp_path: Path) -> None:
    inside, outside = Link.pair()
    asked: list[str] = []

    def die() -> None:
        for _ in range(3):
            _, (fd,) = inside.receive()
            session = Link(fd)
            asked.append(decode_from_client(session.receive()[0]).model)
            session.close()

    dying = threading.Thread(target=die)
    dying.start()
    with pytest.raises(Unavailable, match="the store of weights ended"):
        client.attach(outside.fileno(), "m")
    dying.join()
    assert asked == ["m", "m", "m"]
    inside.close()
    outside.close()
