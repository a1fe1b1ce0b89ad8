"""Two hosts and a long line between them (`dataflower.testing.line`): 5 and 25 ms each way, and narrow ones."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import workflows_for_tests as w
from hosts_rig import Pair, Way, pair

from dataflower.core.pressure import Pressure
from dataflower.host.api import Invocation
from dataflower.spec.workflow import Resources, Retry, Scaling

CANCEL = b"\xa6cancel"
"""How `wire.CancelTask` begins on the wire."""


class Watch:
    """What enters a way: bytes that were under way at a time at most, and where certain words stood."""

    def __init__(self, way: Way, word: bytes) -> None:
        self._way = way
        self._word = word
        self._tail = b""
        self._saw = way.saw
        way.saw = self  # type: ignore[method-assign]
        self.most = 0
        self.passed: int | None = None
        """Bytes that had entered, in both directions, when the word did."""

    def __call__(self, data: bytes) -> None:
        self._saw(data)
        self.most = max(self.most, self._way.under_way)
        if self.passed is None and self._word in self._tail + data:
            self.passed = self._way.passed
        self._tail = data[-len(self._word) :]


@pytest.mark.parametrize("delay_s", [0.005, 0.025])
async def test_results_are_the_same_however_long_the_line_and_whatever_breaks(delay_s: float) -> None:
    async with pair("chain.s1=b", "map_reduce.double=b", "tensors.scale=b") as hosts:
        hosts.way.delay_s = delay_s
        assert await hosts.call(w.chain(3), x=[1, "two"]) == {"y": [1, "two"]}
        assert await hosts.call(w.map_reduce(), n=8) == {"total": 56}
        await hosts.owner.apply(w.tensors(), "tensors")
        call = await hosts.owner.invoke("tensors", {"n": 2_000_000})
        for part in (1, 2, 3):  # cut while it goes there
            await hosts.until(lambda part=part: hosts.way.there.passed > part * 2_000_000)
            hosts.way.cut()
        found = await call.result()
        assert np.array_equal(found["doubled"], 2 * np.arange(2_000_000, dtype=np.float32))
        assert hosts.way.connections == 4
        assert hosts.way.there.passed < 8_000_000 + 3 * 6_000_000, "what had arrived did not go again"


async def test_as_much_is_under_way_as_the_line_holds() -> None:
    """Not a chunk for each round trip: a line of 25 ms each way is filled, however much that takes."""
    async with pair("chain.s1=b") as hosts:
        hosts.way.delay_s = 0.025
        hosts.way.bytes_per_s = 60e6
        watch = Watch(hosts.way, CANCEL)
        x = np.zeros(16 << 20, np.uint8)
        assert (await hosts.call(w.chain(3), x=x))["y"].nbytes == x.nbytes
        assert watch.most > 0.9 * 0.025 * 60e6, "what 25 ms of it are at 60 MB a second"


def flows() -> tuple[w.Workflow, w.Workflow]:
    """One that reads an array over there, and one that goes on until it is stopped."""
    there = Resources(host="b")
    read = w.workflow("read", [w.stage("read", "checksum", {"x": "inputs.x"}, resources=there)], {"y": "read.out"})
    return read, w.single("say_when_stopped", resources=there, scaling=Scaling(min_replicas=1))


async def stopping(hosts: Pair, mark: Path, **inputs: Any) -> Invocation:
    """A function over there that runs until it is stopped."""
    stop = await hosts.owner.invoke("say_when_stopped", {"x": str(mark), **inputs})
    await hosts.until(mark.with_suffix(".started").exists)
    return stop


@pytest.mark.parametrize("mbyte_per_s", [12.5, 60.0])
async def test_a_cancel_passes_what_is_sent_there(tmp_path: Path, mbyte_per_s: float) -> None:
    """It enters the line behind what a few milliseconds take, while megabytes wait; the function ends before them."""
    async with pair() as hosts:
        for flow in flows():
            await hosts.owner.apply(flow, flow.name)
        await hosts.owner.wait_ready("say_when_stopped")
        assert (await (await hosts.owner.invoke("read", {"x": np.zeros(1 << 20, np.uint8)})).result())["y"] == 0
        hosts.way.delay_s, hosts.way.bytes_per_s = 0.01, mbyte_per_s * 1e6
        large = await hosts.owner.invoke("read", {"x": np.zeros(48 << 20, np.uint8)})
        stop = await stopping(hosts, tmp_path / "mark")  # its start passed them as well
        await hosts.until(lambda: hosts.way.there.passed > 4 << 20)
        watch, before = Watch(hosts.way, CANCEL), hosts.way.passed
        stop.cancel()
        await hosts.until((tmp_path / "mark").exists)
        assert watch.passed is not None
        assert watch.passed - before < mbyte_per_s * 1e4 + (64 << 10), "10 ms of the line, and the buffers"
        assert not large.is_over
        large.cancel()
        await hosts.settled()
        assert hosts.way.there.passed < 24 << 20, "and the rest did not go"


async def test_a_cancelled_task_is_over_here_though_bytes_come_back(tmp_path: Path) -> None:
    """The word of its end passes what another container sends here."""
    async with pair() as hosts:
        stages = [w.stage("make", "fill", {"n": "inputs.x"}, resources=Resources(host="b"))]
        for flow in (*flows(), w.workflow("far", stages, {"y": "make.out"})):
            await hosts.owner.apply(flow, flow.name)
        assert (await (await hosts.owner.invoke("far", {"x": 10})).result())["y"].size == 10
        stop = await stopping(hosts, tmp_path / "mark")
        hosts.way.delay_s, hosts.way.bytes_per_s = 0.01, 12.5e6
        large = await hosts.owner.invoke("far", {"x": 10_000_000})
        await hosts.until(lambda: hosts.way.back.passed > 4 << 20)
        stop.cancel()
        await hosts.until(lambda: hosts.owner.statistics().core.tasks == 1)
        assert hosts.way.back.passed < 20 << 20
        large.cancel()
        await hosts.settled()


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_the_end_of_a_container_passes_what_it_had_handed_over(tmp_path: Path, is_cancelled: bool) -> None:
    """Its running task is tried again while its last outputs are on their way, which count; or come no further."""
    again = Retry(max_attempts=5, interval_s=0.01, jitter="none")
    flow = w.single("fill_or_mark", resources=Resources(host="b"), scaling=Scaling(max_replicas=1), retry=again)

    def begun(times: int) -> bool:
        return len(list(tmp_path.glob("mark.*"))) == times

    async with pair(pressure=Pressure.OFF) as hosts:
        assert (await hosts.call(flow, x=10))["y"].size == 10
        hosts.way.delay_s, hosts.way.bytes_per_s = 0.005, 4e6
        before = hosts.way.back.passed
        first = await hosts.owner.invoke("fill_or_mark", {"x": 4_000_000})
        await hosts.until(lambda: hosts.way.back.passed > before + 500_000)
        second = await hosts.owner.invoke("fill_or_mark", {"x": str(tmp_path / "mark")})
        await hosts.until(lambda: begun(1))
        (pid,) = hosts.lender.container_pids().values()
        os.kill(pid, signal.SIGKILL)
        await hosts.until(lambda: begun(2))
        assert not first.is_over
        assert hosts.way.back.passed < before + 12_000_000, "the rest of 16 MB was passed"
        if is_cancelled:
            first.cancel()
        else:
            found = (await first.result())["y"]
            assert np.array_equal(found, np.arange(4_000_000, dtype=np.float32))
            assert first.trace is not None
            assert [task.attempt for task in first.trace.tasks] == [1]
        second.cancel()
        await hosts.settled()
        assert second.trace is not None
        assert [task.attempt for task in second.trace.tasks] == [1, 2]
        if is_cancelled:
            assert hosts.way.back.passed < before + 14_000_000, "what nobody wants comes no further"
