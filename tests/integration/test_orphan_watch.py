"""Processes that a zygote left behind are collected once, however often they are found."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Any

from dataflower.clock import SystemClock
from dataflower.host.launcher import Launcher
from dataflower.host.processes import family_name, marked_children
from dataflower.host.settings import HostConfig


async def test_an_orphan_that_is_found_twice_is_collected_once() -> None:
    problems: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: problems.append(context))
    launcher = Launcher(SystemClock(), HostConfig(), lambda *_: None)
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert launcher._await_orphan(child.pid)
        assert launcher._await_orphan(child.pid)
        child.kill()
        while launcher._orphans:
            launcher._changed.clear()
            await launcher._changed.wait()
        await asyncio.sleep(0)
        assert problems == []
    finally:
        await launcher.close()
        child.returncode = -9  # collected by the launcher


def test_a_descendant_that_has_ended_is_still_known() -> None:
    marker = "DATAFLOWER_HOST=1-0123456789abcdef"
    program = f"open('/proc/self/comm', 'w').write({family_name(marker)!r})"
    child = subprocess.Popen([sys.executable, "-c", program], env={})
    try:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert marked_children(marker) == [child.pid]
    finally:
        child.wait()
