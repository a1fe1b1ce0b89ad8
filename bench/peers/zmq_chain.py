"""pyzmq over ipc://: push and pull sockets, messages copied through the kernel at each stage."""

from __future__ import annotations

import multiprocessing
import tempfile

import zmq

from bench.peers.protocol import Answer, serve, timed


def forward(receive: str, send: str) -> None:
    """A stage: hand on what came, without a copy in Python."""
    context = zmq.Context()
    source, sink = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    source.bind(receive)
    sink.connect(send)
    while True:
        sink.send(source.recv(copy=False), copy=False)


def chain(stages: int, nbytes: int, rounds: int, warm: int) -> Answer:
    """Seconds for a chain of `stages`."""
    with tempfile.TemporaryDirectory() as folder:
        places = [f"ipc://{folder}/{i}" for i in range(stages + 1)]
        spawn = multiprocessing.get_context("spawn")
        ends = [(places[i], places[i + 1]) for i in range(stages)]
        processes = [spawn.Process(target=forward, args=pair, daemon=True) for pair in ends]
        try:
            for process in processes:
                process.start()
            context = zmq.Context()
            sink, source = context.socket(zmq.PUSH), context.socket(zmq.PULL)
            source.bind(places[-1])
            sink.connect(places[0])
            payload = b"\x01" * nbytes

            def once() -> None:
                sink.send(payload)
                assert len(source.recv(copy=False).buffer) == nbytes

            return timed(once, rounds, warm)
        finally:
            for process in processes:
                process.kill()
                process.join()


if __name__ == "__main__":
    serve(("pyzmq",), chain=chain)
