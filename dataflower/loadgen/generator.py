"""One generator: sends its share of the requests on time, in a process of its own, so that nothing that the bench, let
alone the server, has to compute keeps it from doing so."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from dataflower.clock import Clock
from dataflower.errors import DataflowerError
from dataflower.loadgen.alarm import Alarm
from dataflower.loadgen.messages import (
    UNFINISHED,
    Begin,
    Done,
    Door,
    FromGenerator,
    Job,
    Reader,
    Ready,
    Refused,
    Sample,
    Samples,
    Stop,
    order,
)
from dataflower.loadgen.sender import Refusal, Sender, Streams

FLUSH_S = 0.1
"""How long a finished request may wait to be told of, so that one message tells of many."""
GONE_S = 2.0
"""A server that nobody has reached for so long is gone."""
MAX_IN_FLIGHT = 10_000
"""A generator that waits for more answers than this falls behind rather than eat all memory."""

Connect = Callable[[Door, Clock], Sender]


class Generator:
    """Does one job after the other until the bench lets go of its end of the pipe."""

    def __init__(self, reader: Reader, say: Callable[[FromGenerator], None], connect: Connect, clock: Clock) -> None:
        self._reader = reader
        self._say = say
        self._connect = connect
        self._clock = clock

    async def serve(self) -> None:
        """Until the end of the orders."""
        orders: asyncio.Queue[Begin | Stop | Job | None] = asyncio.Queue()
        listening = asyncio.create_task(self._listen(orders))
        try:
            while (job := await orders.get()) is not None:
                if isinstance(job, Job):
                    await self._do(job, orders)
        finally:
            listening.cancel()

    async def _listen(self, orders: asyncio.Queue[Begin | Stop | Job | None]) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                orders.put_nowait(await order(self._reader))
        orders.put_nowait(None)

    async def _do(self, job: Job, orders: asyncio.Queue[Begin | Stop | Job | None]) -> None:
        try:
            sender = self._connect(job.door, self._clock)
        except DataflowerError as error:
            self._say(Refused(error.message))
            return
        try:
            await sender.connect()
            self._say(Ready())
            begin = await orders.get()
            if begin is None:
                orders.put_nowait(None)
            elif isinstance(begin, Begin):
                shift = Shift(job, sender, begin.at, say=self._say, clock=self._clock)
                working = asyncio.create_task(shift.work())
                await self._until_done(shift, working, orders)
                self._say(Done(shift.lost))
        finally:
            await sender.close()

    @staticmethod
    async def _until_done(
        shift: Shift, working: asyncio.Task[None], orders: asyncio.Queue[Begin | Stop | Job | None]
    ) -> None:
        while not working.done():
            told = asyncio.create_task(orders.get())
            await asyncio.wait({told, working}, return_when=asyncio.FIRST_COMPLETED)
            if not told.done():
                told.cancel()
            elif isinstance(stop := told.result(), Stop):
                shift.stop(stop.grace_s)
            else:  # the bench is gone
                shift.stop(0.0)
                orders.put_nowait(None)
                break
        await working


class Shift:
    """One job at work. `begin`: CLOCK_MONOTONIC seconds that its times count from."""

    def __init__(
        self, job: Job, sender: Sender, begin: float, *, say: Callable[[FromGenerator], None], clock: Clock
    ) -> None:
        self._job = job
        self._sender = sender
        self._begin = begin
        self._say = say
        self._clock = clock
        self._running: set[asyncio.Task[None]] = set()
        self._room = asyncio.Event()
        self._stopped = asyncio.Event()
        self._grace_s = job.drain_s
        self._finished: list[Sample] = []
        self._flush: asyncio.TimerHandle | None = None
        self._lost_since: float | None = None
        self.sent = 0
        self.lost: float | None = None
        """When the server went away, seconds since the begin."""

    async def work(self) -> None:
        """Send all, wait for the answers, tell of everything."""
        sending = asyncio.create_task(self._send_all())
        stopped = asyncio.create_task(self._stopped.wait())
        await asyncio.wait({sending, stopped}, return_when=asyncio.FIRST_COMPLETED)
        for task in (sending, stopped):
            if not task.done():
                task.cancel()
        await asyncio.wait({sending, stopped})
        if self._running:
            await self._drain()
        if not sending.cancelled():
            sending.result()
        self._tell()

    async def _drain(self) -> None:
        """Wait for answers, no longer than the grace, which a `stop` in the meantime shortens."""
        if not self._stopped.is_set():
            stopped = asyncio.create_task(self._stopped.wait())
            all_over = asyncio.ensure_future(asyncio.wait(self._running, timeout=self._grace_s))
            await asyncio.wait({stopped, all_over}, return_when=asyncio.FIRST_COMPLETED)
            all_over.cancel()
            stopped.cancel()
        if self._running and self._stopped.is_set() and self._grace_s > 0:
            await asyncio.wait(self._running, timeout=self._grace_s)
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)

    def stop(self, grace_s: float) -> None:
        """Send nothing more, and wait for answers no longer than `grace_s`."""
        self._grace_s = grace_s
        self._stopped.set()

    async def _send_all(self) -> None:
        job = self._job
        with Alarm(self._clock) as alarm:
            for number, time, pick in zip(job.numbers, job.times, job.picks, strict=True):
                body = self._sender.prepared(job.bodies[pick], f"{job.run}-{number}")
                while len(self._running) >= MAX_IN_FLIGHT:
                    self._room.clear()
                    await self._room.wait()
                await alarm.wait_until(self._begin + time)
                task = asyncio.create_task(self._one(number, time, body))
                self._running.add(task)
                task.add_done_callback(self._over)
                await asyncio.sleep(0)  # let it leave now, even if the next one is late already

    def _over(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._room.set()

    async def _one(self, number: int, scheduled: float, body: bytes) -> None:
        sent = self._now()
        self.sent += 1
        deadline_s = self._job.deadline_s
        timeout_s = None if deadline_s is None else max(0.001, scheduled + deadline_s - sent)
        streams: Streams = {}
        try:
            answer = await self._sender.send(body, timeout_s, streams)
        except asyncio.CancelledError:
            answer = Refusal(UNFINISHED, "Unfinished", message="still running when the bench ended")
        ended = self._now()
        refusal = answer if isinstance(answer, Refusal) else Refusal("")
        self._note(
            Sample(
                number,
                scheduled,
                sent,
                ended,
                streams=[[time - self._begin for time in times] for times in streams.values()],
                code=refusal.code,
                kind=refusal.kind,
                stage=refusal.stage,
                message=refusal.message,
                retry_after_s=refusal.retry_after_s,
                lost=refusal.lost,
                invocation="" if isinstance(answer, Refusal) else answer,
            )
        )

    def _now(self) -> float:
        return self._clock.monotonic() - self._begin

    def _note(self, sample: Sample) -> None:
        self._finished.append(sample)
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(FLUSH_S, self._tell)
        if not sample.lost:
            self._lost_since = None
        elif self._lost_since is None:
            self._lost_since = sample.ended
        elif sample.ended - self._lost_since >= GONE_S and self.lost is None:
            self.lost = self._lost_since
            self.stop(0.0)

    def _tell(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        if self._finished:
            self._say(Samples(self._finished, self.sent))
            self._finished = []
