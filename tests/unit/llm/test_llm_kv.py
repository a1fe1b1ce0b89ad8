"""The store of keys and values: memory that nobody has used is not taken."""

from __future__ import annotations

import os
import resource

import torch

from dataflower.host.holder import private_bytes
from dataflower.llm.blocks import Published
from dataflower.llm.kv import KvShape, KvStore


def test_a_large_store_takes_memory_only_as_it_is_used() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    store = KvStore(KvShape(4, 2, 64), 16_384, 16, torch.float32, torch.device("cpu"))  # 1 GB
    assert not store.dense.any()
    store.start(1, [0, 16_383])
    assert store.row(1) == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 20_000  # of the 260,000 pages


def test_a_store_that_is_cleared_gives_its_memory_back_and_works_on() -> None:
    store = KvStore(KvShape(4, 2, 64), 16_384, 16, torch.float32, torch.device("cpu"))
    empty = private_bytes(os.getpid())
    store.start(1, [])
    store.reserve(1, 16)
    store.dense[:, :, 0, :, :16] = 3.0
    store.save(1, [Published(block, 0) for block in range(1000)])  # 64 MB
    full = private_bytes(os.getpid())
    assert full - empty > 50_000_000
    store.end(1)
    store.clear()
    assert full - private_bytes(os.getpid()) > 50_000_000
    assert not store.dense.any()
    store.start(2, [0])
    assert not store.dense.any()  # block 0 was forgotten
