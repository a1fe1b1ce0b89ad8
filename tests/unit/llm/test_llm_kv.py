"""The store of keys and values: memory that nobody has used is not taken."""

from __future__ import annotations

import resource

import torch

from dataflower.llm.kv import KvShape, KvStore


def test_a_large_store_takes_memory_only_as_it_is_used() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    store = KvStore(KvShape(4, 2, 64), 16_384, 16, torch.float32, torch.device("cpu"))  # 1 GB
    assert not store.dense.any()
    store.start(1, [0, 16_383])
    assert store.row(1) == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 20_000  # of the 260,000 pages
