"""Processes that a zygote left behind are collected once, however often they are found."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Any

from dataflower.host.orphans import Orphans
from dataflower.host.processes import family_name, marked_children


async def test_an_orphan_that_is_found_twice_is_collected_once() -> None:
    problems: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: problems.append(context))
    ended = asyncio.Event()
    orphans = Orphans(loop, "NOBODY=1", ended.set)
    child = subprocess.Popen(["sleep", "60"])
    assert orphans.expect(child.pid)
    orphans.end(child.pid)
    await ended.wait()
    child.returncode = -9  # collected already
    await asyncio.sleep(0)
    assert problems == []
    assert not orphans
    assert not orphans.expect(child.pid)


def test_a_descendant_that_has_ended_is_still_known() -> None:
    marker = "DATAFLOWER_HOST=1-0123456789abcdef"
    program = f"open('/proc/self/comm', 'w').write({family_name(marker)!r})"
    child = subprocess.Popen([sys.executable, "-c", program], env={})
    try:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert marked_children(marker) == [child.pid]
    finally:
        child.wait()
