"""A task that is cancelled before its container has looked at it never begins, whichever socket is read first."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest
from engine_rig import PATIENCE_S, count, one_stage, opened

pytestmark = [pytest.mark.fault, pytest.mark.usefixtures("grpc_runtime")]


async def test_what_was_cancelled_while_its_container_stood_still_does_not_begin(tmp_path: Path) -> None:
    there, log = tmp_path / "there", tmp_path / "log"
    there.write_text("yes")
    async with opened(writable_paths=(str(tmp_path),)) as rig:
        await rig.client.apply(one_stage("answered", "answered", "path", "log"))
        given = {"path": str(there), "log": str(log)}
        assert await rig.client.invoke("answered", **given, deadline_s=PATIENCE_S) == {"out": "yes"}
        (pid,) = await rig.pids("answered", "only")
        for _ in range(10):
            os.kill(pid, signal.SIGSTOP)
            call = asyncio.ensure_future(rig.client.invoke("answered", **given))
            await rig.until(lambda: rig.host.workflow("answered").stages[0].busy == 1)
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await call
            await rig.until(lambda: not rig.host.workflow("answered").running)
            os.kill(pid, signal.SIGCONT)
            await rig.settled()
        assert count(log) == 1
        assert await rig.pids("answered", "only") == [pid]
