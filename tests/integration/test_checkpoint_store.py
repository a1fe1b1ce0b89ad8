"""One copy of a model per host: the store's process, and others that have its memory mapped."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from weights_for_tests import CHECK, flip, make

from dataflower import checkpoint, wire
from dataflower.channel.link import Link
from dataflower.checkpoint import client, protocol
from dataflower.checkpoint.catalog import Catalog
from dataflower.checkpoint.disk import DiskTier
from dataflower.checkpoint.layout import SEGMENT_BYTES
from dataflower.checkpoint.manifest import Manifest
from dataflower.checkpoint.region import Mapping
from dataflower.checkpoint.store import MOST_SOCKETS  # its import must not need torch
from dataflower.errors import EndOfStream, NotFound, PeerGone, ResourceExhausted, Unavailable, WeightsInvalid
from dataflower.testing.store_process import StoreProcess, running


def settings(tmp_path: Path, **changes: Any) -> checkpoint.StoreConfig:
    return checkpoint.StoreConfig(models_dir=tmp_path / "store", **changes)


@contextmanager
def reader(store: StoreProcess, model: Path) -> Iterator[tuple[list[str], int]]:
    """Another process that has the model open: what it saw, and its pid."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHECK, str(model)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=(store.door,),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline() or "[]"), process.pid
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait()


def until(condition: Callable[[], bool]) -> None:
    """Wait for what follows a message or the end of a process."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def proportional_bytes(pid: int) -> tuple[int, int]:
    """(PSS, bytes mapped) of the weights that a process has mapped. (RSS falls when pages move into huge ones.)"""
    text = Path(f"/proc/{pid}/smaps").read_text()
    pss = mapped = 0
    ours = False
    for line in text.splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = "dataflower-weights" in line
        elif ours and line.startswith("Pss:"):
            pss += int(line.split()[1]) * 1024
        elif ours and line.startswith("Size:"):
            mapped += int(line.split()[1]) * 1024
    return pss, mapped


def test_processes_share_one_copy_and_one_load(tmp_path: Path) -> None:
    make(tmp_path / "m", 40)
    with running(settings(tmp_path)) as store:
        with (
            reader(store, tmp_path / "m") as (a, first),
            reader(store, tmp_path / "m") as (b, second),
            reader(store, tmp_path / "m") as (c, third),
            checkpoint.open(tmp_path / "m") as weights,
        ):
            assert a == b == c
            assert a[0] == weights.digest
            statistics = store.statistics()
            assert (statistics.loads, statistics.hits) == (1, 3)
            assert [m.clients for m in statistics.models] == [4]
            each = [proportional_bytes(pid) for pid in (first, second, third, store.pid)]
            assert all(mapped >= weights.nbytes for _, mapped in each[:3])
            assert 0 < sum(pss for pss, _ in each) <= 1.02 * weights.nbytes + 2**20
        del weights
        until(lambda: store.statistics().models[0].clients == 0)


def test_many_who_ask_at_once_cause_one_load(tmp_path: Path) -> None:
    wanted = make(tmp_path / "m", 40)
    opened: list[checkpoint.Weights] = []
    with running(settings(tmp_path)) as store:
        threads = [threading.Thread(target=lambda: opened.append(checkpoint.open(tmp_path / "m"))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.statistics().loads == 1
        spec = opened[0].specs()["layer.weight"]
        for weights in opened:
            data = weights.read("model.safetensors")[spec.offset : spec.offset + spec.nbytes]
            assert np.array_equal(np.frombuffer(data, np.float32), wanted["layer.weight"].ravel())
            del data
            weights.close()
    opened.clear()


def test_memory_is_recycled_and_stays_under_its_cap(tmp_path: Path) -> None:
    for name in "abc":
        make(tmp_path / name, 20, seed=ord(name))
    cap = 2 * SEGMENT_BYTES
    with running(settings(tmp_path, models_memory_bytes=cap)) as store:
        for name in "abcab":
            with reader(store, tmp_path / name) as (seen, _):
                assert len(seen) == 2
            held = store.statistics()
            assert held.held_bytes <= cap
            until(lambda: all(m.clients == 0 for m in store.statistics().models))
        resident = Path(f"/proc/{store.pid}/smaps_rollup").read_text()
        shared = int(re.search(r"Pss_Shmem:\s+(\d+)", resident)[1]) * 1024  # type: ignore[index]
        assert shared <= cap + 2**20
        assert {m.name for m in store.statistics().models} == {"a", "b"}


def test_what_does_not_fit_is_refused_and_what_is_used_stays(tmp_path: Path) -> None:
    make(tmp_path / "a", 20)
    make(tmp_path / "b", 20, seed=1)
    make(tmp_path / "big", 39.9)
    with running(settings(tmp_path, models_memory_bytes=SEGMENT_BYTES)) as store:
        with checkpoint.open(tmp_path / "a") as a:
            with pytest.raises(ResourceExhausted, match=r"b needs .* a 32 MiB \(1 users\)"):
                checkpoint.open(tmp_path / "b")
            with pytest.raises(ResourceExhausted, match="big needs 40 MiB of memory; the store may use 32 MiB"):
                checkpoint.open(tmp_path / "big")
            before = bytes(a.read("config.json"))
        del a
        until(lambda: store.statistics().models[0].clients == 0)
        with checkpoint.open(tmp_path / "b") as b:
            assert bytes(b.read("config.json")) == before
            assert [m.name for m in store.statistics().models] == ["b"]
        del b


def test_a_fork_keeps_the_memory_in_use(tmp_path: Path) -> None:
    make(tmp_path / "m", 2)
    with running(settings(tmp_path)) as store:
        weights = checkpoint.open(tmp_path / "m")
        ours, theirs = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(theirs)
            os.read(ours, 1)
            os._exit(0 if bytes(weights.read("config.json")).startswith(b"{") else 1)
        os.close(ours)
        weights.close()
        del weights
        time.sleep(0.05)
        assert store.statistics().models[0].clients == 1
        os.close(theirs)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        until(lambda: store.statistics().models[0].clients == 0)


def test_errors_cross_the_door_as_they_are(tmp_path: Path) -> None:
    make(tmp_path / "m", 20)
    with running(settings(tmp_path)) as store:
        with pytest.raises(NotFound, match="no model 'nonesuch'"):
            checkpoint.open("nonesuch")
        with reader(store, tmp_path / "m"):
            pass
        until(lambda: store.statistics().models[0].clients == 0)
        with checkpoint.open(tmp_path / "m") as weights:
            assert weights.nbytes > 20 * 2**20
        del weights
    with running(settings(tmp_path)):  # a store that remembers nothing but what lies on the disk
        flip(tmp_path / "m" / "model.safetensors", 12345678)
        with pytest.raises(WeightsInvalid, match=r"model\.safetensors: damaged in the chunk at byte 8388608"):
            checkpoint.open(tmp_path / "m")
        flip(tmp_path / "m" / "model.safetensors", 12345678)
        checkpoint.open(tmp_path / "m").close()


def test_a_registered_folder_that_was_changed_is_refused_though_the_memory_has_what_it_was(tmp_path: Path) -> None:
    make(tmp_path / "m", 3)
    catalog = Catalog(DiskTier(settings(tmp_path)))
    catalog.register(tmp_path / "m", "mine")
    with running(settings(tmp_path)), checkpoint.open("mine") as before:
        (tmp_path / "m" / "model.safetensors").touch()
        with checkpoint.open("mine") as after:
            assert after.digest == before.digest
        make(tmp_path / "m", 3, seed=1)
        for packed in ("", "bfloat16"):
            with pytest.raises(
                WeightsInvalid, match=r"model\.safetensors has another content.*models add .* --name mine"
            ):
                checkpoint.open("mine", packed=packed)
        catalog.register(tmp_path / "m", "mine")
        with checkpoint.open("mine") as after:
            assert after.digest != before.digest


def test_the_beginning_can_be_used_while_the_rest_is_being_read(tmp_path: Path) -> None:
    wanted = make(tmp_path / "m", 60)
    seen: list[int] = []
    copied = bytearray()

    def copy(mapping: Mapping, manifest: Manifest, prefix: int) -> None:
        copied.extend(mapping.view(len(copied), prefix - len(copied)))
        seen.append(prefix)

    with running(settings(tmp_path)) as store:
        got = client.attach(store.door, str(tmp_path / "m"), on_prefix=copy)
        assert seen == sorted(seen)
        assert copied == got.mapping.view()
        assert wanted["layer.weight"].tobytes() in copied
        del got


def test_memory_is_made_ready_in_advance(tmp_path: Path) -> None:
    make(tmp_path / "m", 60)
    with running(settings(tmp_path, models_prefault_bytes=3 * SEGMENT_BYTES)) as store:
        until(lambda: store.statistics().free_bytes == 3 * SEGMENT_BYTES)
        with checkpoint.open(tmp_path / "m") as weights:
            assert weights.specs()
            held = store.statistics()
            assert (held.held_bytes, held.free_bytes) == (3 * SEGMENT_BYTES, SEGMENT_BYTES)
        del weights


def test_without_a_host_there_is_an_error_not_a_wait(tmp_path: Path) -> None:
    store = StoreProcess(settings(tmp_path))
    door = os.dup(store.door)
    store.close()
    with pytest.raises(Unavailable, match="its host has gone"):
        client.attach(door, "m")
    os.close(door)


def test_a_variable_that_names_no_door_of_ours_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "x:y", "12", "999:1", f"0:{os.fstat(0).st_ino + 1}"):
        monkeypatch.setenv(client.VARIABLE, value)
        assert client.find_door() is None


def test_nonsense_through_the_door_harms_nobody(tmp_path: Path) -> None:
    make(tmp_path / "m")
    with running(settings(tmp_path)) as store:
        way = Link(os.dup(store.door))
        way.send(b"\xff\x00nonsense")
        ours, theirs = Link.pair()
        way.send(b"\x93\x01\x02\x03", (theirs.fileno(),))
        theirs.close()
        way.close()
        session = client.enter(store.door)
        session.send(b"\xff")
        with checkpoint.open(tmp_path / "m") as weights:
            assert weights.digest
        del weights
        session.close()
        ours.close()


@pytest.mark.parametrize("message", [protocol.Hold("m", 1e300), protocol.Forget("m"), protocol.AskStatistics()])
def test_what_the_host_alone_may_ask_is_not_answered_to_others(tmp_path: Path, message: protocol.FromClient) -> None:
    make(tmp_path / "m")
    with running(settings(tmp_path)) as store, checkpoint.open(tmp_path / "m") as weights:
        before = store.statistics()
        with _knocked(store.door, 7) as mine:
            mine.send(protocol.encode(message))
            with pytest.raises((EndOfStream, PeerGone)):
                mine.receive()
        assert store.statistics().models == before.models
    del weights


def test_one_process_does_not_take_all_the_sockets(tmp_path: Path) -> None:
    make(tmp_path / "m")
    with running(settings(tmp_path)) as store, contextlib.ExitStack() as open_ends:
        ends = [open_ends.enter_context(_knocked(store.door, 7)) for _ in range(MOST_SOCKETS + 1)]
        with pytest.raises((EndOfStream, PeerGone)):
            ends[-1].receive()
        with checkpoint.open(tmp_path / "m") as weights:
            assert weights.digest
        del weights


@contextlib.contextmanager
def _knocked(door: int, process: int) -> Iterator[Link]:
    """A socket to the store, as the host makes it for a process."""
    ours, theirs = Link.pair()
    way = Link(os.dup(door))
    way.send(wire.encode(wire.Knock(protocol.VERSION, process)), (theirs.fileno(),))
    way.close()
    theirs.close()
    yield ours
    ours.close()
