"""The generator processes of a bench: started, given their jobs, listened to, and ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from types import TracebackType

from dataflower.clock import Clock, SystemClock
from dataflower.errors import Code, DataflowerError, InvalidArgument
from dataflower.loadgen.messages import Begin, Done, Job, Ready, Refused, Sample, Samples, Stop, framed, reply

LEAD_S = 0.2
"""From the order to begin to the begin: time for the order to reach everyone."""
START_TIMEOUT_S = 30.0
Listener = Callable[[Sequence[Sample], int], None]
"""Called with requests that are over and the number sent so far by all."""


class Crew:
    """`size` generators, as `async with`. Leaving the block ends them; if the bench dies, they see their stdin end."""

    def __init__(self, size: int, clock: Clock | None = None) -> None:
        self._size = size
        self._clock = clock or SystemClock()
        self._processes: list[asyncio.subprocess.Process] = []

    @property
    def pids(self) -> list[int]:
        """Of the generators."""
        return [process.pid for process in self._processes]

    async def __aenter__(self) -> Crew:
        environment = {"GRPC_VERBOSITY": "NONE", **os.environ}
        for _ in range(self._size):
            self._processes.append(
                await asyncio.create_subprocess_exec(
                    sys.executable,
                    *("-m", "dataflower.loadgen"),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    env=environment,
                    start_new_session=True,  # Ctrl-C is for the bench
                )
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            try:
                await asyncio.wait_for(process.wait(), 5.0)
            except TimeoutError:
                process.kill()
                await process.wait()

    async def run(
        self,
        jobs: Sequence[Job],
        listener: Listener,
        *,
        stop: asyncio.Event,
        grace_s: float,
        begun: Callable[[float], None],
    ) -> float | None:
        """Do the jobs, one each; returns when the server went away (seconds since the begin), if it did.

        `stop` ends the sending early; what is then under way has `grace_s` to end. `begun` is told the begin.

        Raises:
            InvalidArgument: a generator can't do its job, say for want of a file.
            DataflowerError: a generator has died.
        """
        crew = list(zip(self._processes, jobs, strict=True))
        await asyncio.wait_for(asyncio.gather(*(self._brief(process, job) for process, job in crew)), START_TIMEOUT_S)
        begin = self._clock.monotonic() + LEAD_S
        begun(begin)
        self._tell(Begin(begin))
        sent = [0] * len(crew)

        async def listen(i: int, process: asyncio.subprocess.Process) -> float | None:
            while not isinstance(message := await self._hear(process), Done):
                if isinstance(message, Samples):
                    sent[i] = message.sent
                    listener(message.samples, sum(sent))
            if message.lost is not None:
                stop.set()
            return message.lost

        async def pass_on() -> None:
            await stop.wait()
            self._tell(Stop(grace_s))

        stopping = asyncio.create_task(pass_on())
        try:
            lost = await asyncio.gather(*(listen(i, process) for i, (process, _) in enumerate(crew)))
        finally:
            stopping.cancel()
        return min((time for time in lost if time is not None), default=None)

    async def _brief(self, process: asyncio.subprocess.Process, job: Job) -> None:
        assert process.stdin is not None
        process.stdin.write(framed(job))
        with contextlib.suppress(ConnectionError):  # a dead generator is noticed by its silence
            await process.stdin.drain()
        message = await self._hear(process)
        if isinstance(message, Refused):
            raise InvalidArgument(message.message)
        assert isinstance(message, Ready)

    async def _hear(self, process: asyncio.subprocess.Process) -> Ready | Refused | Samples | Done:
        assert process.stdout is not None
        try:
            return await reply(process.stdout)
        except asyncio.IncompleteReadError:
            code = await process.wait()
            raise DataflowerError(f"a generator process died (exit code {code})", code=Code.INTERNAL) from None

    def _tell(self, message: Begin | Stop) -> None:
        for process in self._processes:
            if process.stdin is not None and not process.stdin.is_closing():
                process.stdin.write(framed(message))
