"""A server process for tests to kill: runs a host on a state directory and says what it did, a line each."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvloop
import workflows_for_tests as w

from dataflower.host.api import State
from dataflower.host.runtime import Runtime
from dataflower.host.settings import HostConfig


async def serve(state: Path, answer: str) -> None:
    # The function leaves marks beside the state directory.
    settings = HostConfig(state_dir=state, code_path=w.CODE_PATH, cpus=2, writable_paths=(str(state.parent),))
    async with Runtime(settings, load=w.load) as host:
        if not host.workflows():
            await host.apply(w.single("wait_for_file"), "wait_for_file")
        record = await host.submit("wait_for_file", {"x": answer}, invocation="job")
        while record.state is State.RUNNING and not host.container_pids():
            await asyncio.sleep(0.01)
        processes = [*host.zygote_pids(), *host.container_pids().values()]
        print(record.state.value, *processes, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1]), sys.argv[2]))
