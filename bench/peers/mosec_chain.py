"""mosec: stages in a row behind its own HTTP server, with a codec that passes bytes on as they are.

The client is as thin as can be: requests made beforehand on kept-alive sockets, answers read up to their length.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mosec import Server, Worker

from bench.peers.protocol import Answer, serve, timed


class Forward(Worker):
    """A stage: hand on what came. Bytes all the way, at the door and between the stages."""

    def forward(self, data: Any) -> Any:
        return data

    def serialize(self, data: Any) -> bytes:
        return bytes(data)

    def deserialize(self, data: bytes) -> Any:
        return data

    def serialize_ipc(self, data: Any) -> bytes:
        return bytes(data)

    def deserialize_ipc(self, data: bytes) -> Any:
        return data


class Connection:
    """A kept-alive connection to the server."""

    def __init__(self, port: int, nbytes: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = f"POST /inference HTTP/1.1\r\nHost: x\r\nContent-Length: {nbytes}\r\n\r\n"
        self.request = head.encode() + b"\x01" * nbytes
        self.buffer = bytearray(nbytes + 65536)
        self.got = self.expected = 0

    def send(self) -> None:
        """A request."""
        self.got = self.expected = 0
        self.socket.sendall(self.request)

    def receive(self) -> bool:
        """Read what is there; gives whether that was all of the answer."""
        read = self.socket.recv_into(memoryview(self.buffer)[self.got :])
        assert read, "the server closed the connection"
        self.got += read
        if not self.expected:
            end = self.buffer.find(b"\r\n\r\n", 0, self.got)
            if end < 0:
                return False
            head = bytes(self.buffer[:end]).lower()
            assert b" 200 " in head.partition(b"\r\n")[0], head
            self.expected = end + 4 + int(head.partition(b"content-length:")[2].split()[0])
        return self.got >= self.expected

    def call(self) -> None:
        """A request and its answer."""
        self.send()
        while not self.receive():
            pass


@contextmanager
def server(stages: int) -> Iterator[int]:
    """The server, ready; gives its port."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
        probe.close()
        command = [sys.executable, "-m", "bench.peers.mosec_chain", "server", str(stages)]
        command += ["--address", "127.0.0.1", "--port", str(port), "--path", folder, "--log-level", "error"]
        command += ["--timeout", "30000", "--max-request-size", str(1 << 30)]
        process = subprocess.Popen(command, start_new_session=True)
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    Connection(port, 16).call()
                    break
                except (OSError, AssertionError):
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError("mosec does not start") from None
                    time.sleep(0.1)
            yield port
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # it would wait for its clients to hang up
            process.wait()


def chain(stages: int, nbytes: int, rounds: int, warm: int) -> Answer:
    """Seconds for a chain of `stages`."""
    with server(stages) as port:
        return timed(Connection(port, nbytes).call, rounds, warm)


def throughput(stages: int, nbytes: int, in_flight: int, seconds: float) -> Answer:
    """Requests per second with so many in flight."""
    with server(stages) as port, selectors.DefaultSelector() as selector:
        for _ in range(in_flight):
            connection = Connection(port, nbytes)
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send()
        done, start = 0, time.perf_counter()
        warm_until, end = start + seconds / 4, start + seconds * 5 / 4
        while (now := time.perf_counter()) < end:
            if warm_until and now >= warm_until:
                done, start, warm_until = 0, now, 0.0
            for key, _ in selector.select():
                if key.data.receive():
                    done += 1
                    key.data.send()
        return {"rate": done / (now - start)}


def main() -> None:
    """The server, or the measuring side."""
    if len(sys.argv) > 2 and sys.argv[1] == "server":
        stages = int(sys.argv[2])
        sys.argv[1:3] = []
        made = Server()
        for _ in range(stages):
            made.append_worker(Forward, num=1)
        made.run()
    else:
        serve(("mosec",), chain=chain, throughput=throughput)


if __name__ == "__main__":
    main()
