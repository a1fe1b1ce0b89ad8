"""`python -m dataflower.loadgen`: a generator process; orders come on stdin, samples go to stdout."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import uvloop

from dataflower.clock import Clock, SystemClock
from dataflower.loadgen.generator import Generator
from dataflower.loadgen.http_sender import HttpSender
from dataflower.loadgen.messages import Door, FromGenerator, framed
from dataflower.loadgen.sender import GrpcSender, Sender


def main() -> None:
    """Serve until stdin ends. Ctrl-C is for the bench, which tells its generators what to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve())


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    clock = SystemClock()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    transport, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, sys.stdout.buffer)

    def say(message: FromGenerator) -> None:
        transport.write(framed(message))

    await Generator(reader, say, _connect, clock).serve()
    transport.close()


def _connect(door: Door, clock: Clock) -> Sender:
    return HttpSender(door, clock) if door.http_url else GrpcSender(door, clock)


if __name__ == "__main__":
    main()
