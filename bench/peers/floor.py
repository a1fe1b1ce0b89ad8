"""The floor: a few bytes that name shared memory, over sockets, in plain Python; nothing is decided or kept.

`direct`: each process sends to the next. `relay`: each sends to the process that called, which passes it on (epoll):
the shape of an engine whose host sees every token. `spun` asks something else: how long a token takes by way of the
caller while the process that sent it computes on.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import select
import socket
import struct
import sys
import time

from bench.peers.protocol import Answer, serve, timed

TOKEN = struct.Struct("<QQ")
TIME = struct.Struct("<d")


def forward(receive: socket.socket, send: socket.socket, memory: mmap.mmap) -> None:
    """A stage: look at the bytes that are named, pass the name on."""
    while message := receive.recv(4096):
        offset, nbytes = TOKEN.unpack(message)
        view = memoryview(memory)[offset : offset + nbytes]
        assert view[0] == 1
        send.send(message)


class Chain:
    """Processes in a row, and the ends that the caller holds."""

    def __init__(self, stages: int, nbytes: int, relay: bool) -> None:
        descriptor = os.memfd_create("floor")
        os.ftruncate(descriptor, nbytes)
        self.memory = mmap.mmap(descriptor, nbytes)
        os.close(descriptor)
        self.payload = b"\x01" * nbytes
        self.token = TOKEN.pack(0, nbytes)
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(stages + (not relay))]
        self.ends = [ours for ours, _ in pairs]
        self.last = pairs[-1][1]
        self.processes = []
        fork = multiprocessing.get_context("fork")
        for i in range(stages):
            receive, send = (pairs[i][1], pairs[i][1]) if relay else (pairs[i][1], pairs[i + 1][0])
            self.processes.append(fork.Process(target=forward, args=(receive, send, self.memory), daemon=True))
            self.processes[-1].start()
        self.poll = select.epoll()
        for end in self.ends if relay else ():
            self.poll.register(end, select.EPOLLIN)
        self.position = {end.fileno(): i for i, end in enumerate(self.ends)}

    def direct(self) -> None:
        """Once through."""
        self.memory[: len(self.payload)] = self.payload
        self.ends[0].send(self.token)
        self.last.recv(4096)

    def relayed(self) -> None:
        """Once through, by way of this process."""
        self.memory[: len(self.payload)] = self.payload
        self.ends[0].send(self.token)
        while True:
            for descriptor, _ in self.poll.poll():
                at = self.position[descriptor]
                message = self.ends[at].recv(4096)
                if at + 1 == len(self.ends):
                    return
                self.ends[at + 1].send(message)

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.terminate()
            process.join()
        for end in [*self.ends, self.last]:
            end.close()
        self.poll.close()


def chain(stages: int, nbytes: int, rounds: int, warm: int) -> Answer:
    """Seconds for a chain of `stages`."""
    relay = sys.argv[1] == "relay"
    made = Chain(stages, nbytes, relay)
    try:
        return timed(made.relayed if relay else made.direct, rounds, warm)
    finally:
        made.close()


def produce(send: socket.socket, tokens: int, seconds: float) -> None:
    """Send the time of day, then compute for `seconds` in pure Python; `tokens` times."""
    for _ in range(tokens):
        send.send(TIME.pack(time.monotonic()))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass
    send.close()


def consume(receive: socket.socket, answer: socket.socket) -> None:
    """Send back how old each token was when it was there."""
    while message := receive.recv(4096):
        answer.send(TIME.pack(time.monotonic() - TIME.unpack(message)[0]))


def spun(tokens: int, seconds: float) -> Answer:
    """Seconds from the hand-over of a token to its consumer, by way of this process, while its producer computes on."""
    pair = socket.socketpair
    (producer, made), (onward, consumer), (answer, answered) = (
        pair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in "123"
    )
    fork = multiprocessing.get_context("fork")
    ends = (producer, made, onward, consumer, answer, answered)
    works = [(consume, (consumer, answer)), (produce, (made, tokens, seconds))]
    processes = [fork.Process(target=target, args=arguments, daemon=True) for target, arguments in works]
    samples = []
    try:
        for process in processes:
            process.start()
        for _ in range(tokens):
            onward.send(producer.recv(4096))
            samples.append(TIME.unpack(answered.recv(4096))[0])
        return {"samples": samples}
    finally:
        for process in processes:
            process.terminate()
            process.join()
        for end in ends:
            end.close()


if __name__ == "__main__":
    serve((), chain=chain, spun=spun)
