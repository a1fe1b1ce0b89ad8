"""What does it cost to run a stage on another host, over plain TCP between the same two places?

A call with 1 KB whose only stage is on the second host, less the same with the stage here: `hosts_hop_us`; a round trip
of 1 KB over a plain TCP connection beside it: `tcp_round_trip_us`. The same with a tensor of 64 MB that the stage reads
(and does not send back): `hosts_64MB_ms`, against `recv_into` warm memory of as many bytes from a plain connection:
`tcp_64MB_ms`. And what the same tensor costs a task that waited for its turn while another one computed, from the end
of that one to its own: `hosts_waited_64MB_ms`. The two hosts are in network namespaces joined by a line without a
limit, where that is possible.

Then over a long line (`bench.long_line`): `hosts_line_share`, `hosts_line_share_alone`, `hosts_line_reach_ms`.
Then from one of two other hosts to the other (`bench.between`): `lenders_64MB_ms`, `lenders_gain_64MB`.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from argparse import Namespace

import numpy as np
import uvloop

from bench import between, long_line
from bench.engine import call, document, engine
from bench.report import Report, arguments, finish
from bench.second_host import ECHO_BYTES, NAME, SINK_BYTES, TOKEN, second_host
from dataflower.host.runtime import Runtime

BUSY_S = 0.5
SIZES = {"1KB": ECHO_BYTES, "64MB": SINK_BYTES}


def workflow(name: str, resources: str) -> str:
    """One stage that looks at its input."""
    rest = f"resources: {{{resources}}}, scaling: {{min_replicas: 1, max_replicas: 1}}"
    line = f"  look: {{function: 'bench.functions:length', inputs: {{x: inputs.x}}, {rest}}}"
    return document(name, "{x: {type: any}}", line, "{y: look.out}")


def waiting() -> str:
    """One stage over there that computes for as long as it is told."""
    inputs = "{x: inputs.x, seconds: inputs.seconds}"
    rest = f"resources: {{host: {NAME}}}, scaling: {{min_replicas: 1, max_replicas: 1}}"
    line = f"  work: {{function: 'bench.functions:busy', inputs: {inputs}, {rest}}}"
    return document("waiting", "{x: {type: any}, seconds: {type: float}}", line, "{y: work.out}")


async def waited(host: Runtime, x: np.ndarray) -> float:
    """Seconds from the end of a task to the end of the next, whose input came meanwhile."""

    async def one(x: np.ndarray, seconds: float) -> float:
        await call(host, "waiting", {"x": x, "seconds": seconds})
        return time.perf_counter()

    first = asyncio.create_task(one(x[:1], BUSY_S))
    await asyncio.sleep(BUSY_S / 10)
    second = asyncio.create_task(one(x, 0.0))
    ended = await first
    return await second - ended


async def timed(host: Runtime, name: str, x: np.ndarray) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    await call(host, name, {"x": x})
    return time.perf_counter() - start


def exchange(plain: socket.socket, content: bytes) -> float:
    """Seconds until the other side has said that it has all of it."""
    start = time.perf_counter()
    plain.sendall(content)
    plain.recv(1)
    return time.perf_counter() - start


async def run(report: Report, options: Namespace) -> None:
    """All figures."""
    rounds = {"1KB": 50 if options.quick else 300, "64MB": 3 if options.quick else 10}
    with second_host(link="") as second:
        settings = {"host_name": "a", "peers": (second.peer,), "peer_token": TOKEN}
        sources = workflow("here", ""), workflow("there", f"host: {NAME}"), waiting()
        async with engine(*sources, **settings) as host:
            print(f"two hosts: {second.words}")
            for name in ("here", "there", "waiting"):
                await host.wait_ready(name)
            taken: dict[tuple[str, str], list[float]] = {}
            for size, nbytes in SIZES.items():
                x = np.zeros(nbytes, np.uint8)
                with socket.create_connection(second.plain[size]) as plain:
                    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    for turn in range(5 * rounds[size] // 4):
                        samples = {name: await timed(host, name, x) for name in ("here", "there")}
                        samples["tcp"] = await asyncio.to_thread(exchange, plain, x.tobytes())
                        if turn >= rounds[size] // 4:  # memory is warm
                            for name, seconds in samples.items():
                                taken.setdefault((name, size), []).append(seconds)
            large = np.zeros(SINK_BYTES, np.uint8)
            behind = [await waited(host, large) for _ in range(1 + rounds["64MB"])][1:]
    add(report, taken, behind)


def add(report: Report, taken: dict[tuple[str, str], list[float]], behind: list[float]) -> None:
    """The figures of what was measured."""
    middle = {key: statistics.median(samples) for key, samples in taken.items()}
    hop = (middle["there", "1KB"] - middle["here", "1KB"]) * 1e6
    move = (middle["there", "64MB"] - middle["here", "64MB"]) * 1e3
    trip, plain = middle["tcp", "1KB"] * 1e6, middle["tcp", "64MB"] * 1e3
    trips, plains = [s * 1e6 for s in taken["tcp", "1KB"]], [s * 1e3 for s in taken["tcp", "64MB"]]
    report.add("hosts_hop_us", "a stage there, not here, 1 KB", hop, unit="us")
    report.add("tcp_round_trip_us", "a round trip over plain TCP, 1 KB", trip, unit="us", samples=trips)
    report.add("hosts_64MB_ms", "a stage there, not here, that reads 64 MB", move, unit="ms")
    report.add("tcp_64MB_ms", "64 MB over plain TCP into warm memory", plain, unit="ms", samples=plains)
    report.add("hosts_over_tcp_64MB", "64 MB: ours over plain TCP", move / plain)
    late = [seconds * 1e3 for seconds in behind]
    question = "64 MB that came while another task ran"
    report.add("hosts_waited_64MB_ms", question, statistics.median(late), unit="ms", samples=late)


def main() -> None:
    """Run the benchmark."""
    options = arguments(__doc__ or "")
    report = Report("hosts")
    uvloop.run(run(report, options))
    uvloop.run(long_line.measure(report, options))
    uvloop.run(between.measure(report, options))
    finish(report, options)


if __name__ == "__main__":
    main()
