"""What does 64 MB cost that one lender makes and another reads, straight between the two and by way of the owner?

A part of `bench.hosts`. Two owners in this process have the same two lenders run the same two stages, one of them with
`peer_lines` off; calls take turns. What a call with 1 KB takes is taken off. In network namespaces all three pairs are
joined by lines of their own.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from argparse import Namespace

from bench.engine import call, document, engine, stage
from bench.report import Report
from bench.second_host import NAME, SINK_BYTES, THIRD, TOKEN, joined, second_host
from dataflower.host.runtime import Runtime

SIZES = {"1KB": 1 << 10, "64MB": SINK_BYTES}


def workflow() -> str:
    """Made on the one, read on the other."""
    rest = "scaling: {min_replicas: 1, max_replicas: 1}, retry: {max_attempts: 2}"
    make = "{trigger: inputs.x, nbytes: inputs.nbytes}"
    lines = (
        stage("make", "blank", make, f", resources: {{host: {NAME}}}, {rest}"),
        stage("read", "length", "{x: make.out}", f", resources: {{host: {THIRD}}}, {rest}"),
    )
    return document("between", "{x: {type: any}, nbytes: {type: int}}", "\n".join(lines), "{y: read.out}")


async def timed(host: Runtime, nbytes: int) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    found = await call(host, "between", {"x": 0, "nbytes": nbytes})
    assert found["y"] == nbytes
    return time.perf_counter() - start


def through(host: Runtime) -> int:
    """Bytes of tensors that went through an owner."""
    return sum(peer.bytes_in + peer.bytes_out for peer in host.peers())


async def measure(report: Report, options: Namespace) -> None:
    """Both ways, in turns."""
    rounds = {"1KB": 10 if options.quick else 100, "64MB": 4 if options.quick else 20}
    with second_host(link="") as second, second_host("", THIRD) as third, joined(second, third) as words:
        print(f"two lenders: {words}")
        async with contextlib.AsyncExitStack() as stack:
            owners = {}
            for way, lines in (("straight", True), ("owner", False)):
                settings = {"peers": (second.peer, third.peer), "peer_token": TOKEN, "peer_lines": lines}
                host = await stack.enter_async_context(engine(workflow(), host_name=way, **settings))
                await host.wait_ready("between")
                owners[way] = host
            taken: dict[tuple[str, str], list[float]] = {}
            for size, nbytes in SIZES.items():
                for turn in range(5 * rounds[size] // 4):
                    samples = {way: await timed(host, nbytes) for way, host in owners.items()}
                    if turn >= rounds[size] // 4:  # memory is warm
                        for way, seconds in samples.items():
                            taken.setdefault((way, size), []).append(seconds)
            _add(report, taken, through(owners["straight"]))


def _add(report: Report, taken: dict[tuple[str, str], list[float]], passed: int) -> None:
    moves = {
        way: [(seconds - statistics.median(taken[way, "1KB"])) * 1e3 for seconds in taken[way, "64MB"]]
        for way in ("straight", "owner")
    }
    middle = {way: statistics.median(samples) for way, samples in moves.items()}
    straight, owner = "64 MB from lender to lender", "the same by way of the owner"
    report.add("lenders_64MB_ms", straight, middle["straight"], unit="ms", samples=moves["straight"])
    report.add("lenders_by_owner_64MB_ms", owner, middle["owner"], unit="ms", samples=moves["owner"])
    report.add("lenders_gain_64MB", "by way of the owner over straight", middle["owner"] / middle["straight"])
    report.add("lenders_owner_bytes", "bytes of tensors through the owner, straight", passed, at_most=0)
