"""The collector leaves alone what a host has made before its first invocation."""

from __future__ import annotations

import gc

from dataflower.host.heap import spare_the_collector


def test_what_is_there_is_never_looked_at_again() -> None:
    before = gc.get_threshold()
    try:
        spare_the_collector()
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold()[0] > before[0]
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
