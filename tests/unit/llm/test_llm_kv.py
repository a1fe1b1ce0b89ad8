"""The store of keys and values: memory that nobody has used is not taken."""

from __future__ import annotations

import os
import resource

import torch

from dataflower.host.process_memory import private_bytes
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
    store.save([(1, [Published(block, 0) for block in range(1000)])])  # 64 MB
    store.start(3, [])  # after the copies
    full = private_bytes(os.getpid())
    assert full - empty > 50_000_000
    store.end(1)
    store.end(3)
    store.clear()
    assert full - private_bytes(os.getpid()) > 50_000_000
    assert not store.dense.any()
    store.start(2, [0])
    assert not store.dense.any()  # block 0 was forgotten


def test_what_was_saved_is_what_the_row_held_though_it_moves_at_once() -> None:
    store = KvStore(KvShape(4, 2, 64), 40, 16, torch.bfloat16, torch.device("cpu"))
    for sequence in (1, 2, 3):
        store.start(sequence, [])
        store.reserve(sequence, 32)
        store.dense[:, :, store.row(sequence), :, :32] = float(sequence)
    store.dense[:, :, 0, :, 16:32] = 9.0
    store.save([(1, [Published(5, 0), Published(6, 1)]), (3, [Published(7, 1)])])
    store.end(1)  # row 0 is the third one's now
    store.start(4, [5, 6, 7])
    row = store.dense[:, :, store.row(4)]
    assert (row[..., :16, :] == 1).all()
    assert (row[..., 16:32, :] == 9).all()
    assert (row[..., 32:48, :] == 3).all()
    store.close()
