"""Load from real generator processes on a server whose speed is known: what the bench says must be true."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from dataflower.errors import ResourceExhausted
from dataflower.gateway.server import Gateway, serve
from dataflower.gateway.settings import GatewayConfig
from dataflower.host.api import State
from dataflower.loadgen.arrivals import Arrivals, Shape
from dataflower.loadgen.assess import Terms
from dataflower.loadgen.http_sender import encode_http
from dataflower.loadgen.messages import Door
from dataflower.loadgen.report import Outcome, Settings
from dataflower.loadgen.sender import encode
from dataflower.loadgen.session import Load, Session
from dataflower.loadgen.sweep import Sweep
from dataflower.spec.function import Port, Text
from dataflower.spec.workflow import Slo
from dataflower.testing.fake_host import FakeHost

pytestmark = pytest.mark.usefixtures("grpc_runtime")
DELAY_S = 0.19


@dataclass
class Stub:
    """A server whose workflows take known times."""

    host: FakeHost
    gateway: Gateway

    def session(
        self,
        workflow: str,
        rate: float,
        duration_s: float,
        slo: Slo | None = None,
        *,
        stream: bool = False,
        deadline_s: float | None = None,
        drain_s: float = 30.0,
        warmup_s: float = 0.0,
        http: bool = False,
    ) -> Session:
        url = str(self.gateway.http_url) if http else ""
        door = Door(f"127.0.0.1:{self.gateway.grpc_port}", workflow, http_url=url, stream=stream)
        arrivals = Arrivals(Shape.CONSTANT, rate, cv=0.0)
        body = encode_http({}, stream=stream) if http else encode(workflow, {}, stream=stream)
        load = Load(arrivals, (body,), duration_s, warmup_s, seed=0)
        settings = Settings(workflow, 1, "stub", "grpc", "", rate, 0, duration_s, warmup_s, 0)
        return Session(door, load, Terms(settings, slo), {}, deadline_s=deadline_s, drain_s=drain_s)


@pytest.fixture
async def stub() -> AsyncIterator[Stub]:
    host = FakeHost()
    one_at_a_time = asyncio.Semaphore(1)
    calls = itertools.count()

    async def delayed() -> str:
        await asyncio.sleep(DELAY_S)
        return "done"

    async def single() -> str:
        async with one_at_a_time:
            await asyncio.sleep(0.02)
        return "done"

    async def picky() -> str:
        if next(calls) % 2:
            raise ResourceExhausted("not now", retry_after_s=1.0)
        return "done"

    async def tokens() -> AsyncIterator[str]:
        for word in ("a", "b", "c"):
            await asyncio.sleep(0.05)
            yield word

    async def forever() -> None:
        await asyncio.Event().wait()

    for name, body in (("delayed", delayed), ("single", single), ("picky", picky), ("forever", forever)):
        host.add(name, body, ())
    host.add("tokens", tokens, (), (Port("text", Text(), stream=True),))
    async with await serve(host, GatewayConfig(port=0, http_port=0)) as gateway:
        yield Stub(host, gateway)
        await host.close()


async def test_a_known_delay_is_what_is_reported(stub: Stub) -> None:
    report = await stub.session("delayed", 20, 1.5, Slo(e2e_ms=20_000), warmup_s=0.5).once()
    assert (report.counts.measured, report.counts.ok, report.counts.warmup) == (30, 30, 10)
    assert report.metrics["e2e_ms"].min >= DELAY_S * 1e3
    assert report.verdict.outcome is not Outcome.MISSED
    assert report.whole is not None
    assert report.traced == 30


async def test_a_stalled_client_shows_in_the_p99(stub: Stub) -> None:
    """Coordinated omission: a generator that could not send must not make the server look quick."""
    session = stub.session("delayed", 20, 3.0, Slo(e2e_ms=10_000))

    async def stall() -> None:
        while session.crew is None or not session.crew.pids:
            await asyncio.sleep(0.05)
        (pid,) = session.crew.pids
        while not stub.host.invocations:
            await asyncio.sleep(0.05)
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(1.0)
        os.kill(pid, signal.SIGCONT)

    stalling = asyncio.create_task(stall())
    report = await session.once()
    await stalling
    assert report.counts.ok == 60
    assert report.metrics["e2e_ms"].p99 >= 1000  # nearly all of the stall, and the delay on top
    assert report.metrics["e2e_ms"].p50 >= DELAY_S * 1e3
    assert report.metrics["send_lag_ms"].p99 >= 800
    assert report.verdict.outcome is Outcome.UNPROVEN
    assert "fell behind" in report.verdict.reasons[0]


async def test_a_missed_slo_is_missed(stub: Stub) -> None:
    report = await stub.session("delayed", 20, 1.0, Slo(e2e_ms=100)).once()
    assert report.verdict.outcome is Outcome.MISSED
    assert report.verdict.attainment == 0.0
    assert report.rates.goodput_per_s == 0.0


@pytest.mark.parametrize("http", [False, True])
async def test_refusals_stand_apart(stub: Stub, http: bool) -> None:
    report = await stub.session("picky", 40, 1.0, Slo(e2e_ms=20_000), http=http).once()
    assert (report.counts.ok, report.counts.refused, report.counts.failed) == (20, 20, 0)
    assert report.verdict.attainment == pytest.approx(0.5)
    assert report.verdict.attainment_accepted == pytest.approx(1.0)
    assert report.faults[0].code == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("http", [False, True])
async def test_streams_are_measured_item_by_item(stub: Stub, http: bool) -> None:
    report = await stub.session("tokens", 10, 1.0, Slo(ttft_ms=5000), stream=True, http=http).once()
    assert report.traced == report.counts.ok == 10
    assert report.metrics["ttft_ms"].min >= 50
    assert report.metrics["itl_ms"].n == 2 * report.counts.ok == 20
    assert report.metrics["tpot_ms"].p50 >= 45
    assert report.metrics["e2e_ms"].min >= 150


async def test_a_deadline_ends_requests_and_is_an_error(stub: Stub) -> None:
    report = await stub.session("forever", 10, 1.0, Slo(e2e_ms=100), deadline_s=0.3).once()
    assert report.counts.failed == 10
    assert report.faults[0].code == "DEADLINE_EXCEEDED"


async def test_what_never_ends_is_cut_off(stub: Stub) -> None:
    report = await stub.session("forever", 10, 0.5, drain_s=0.3).once()
    assert report.counts.unfinished == 5
    assert report.counts.ok == 0
    while any(call.state is State.RUNNING for call in stub.host.invocations.values()):
        await asyncio.sleep(0.01)  # the server hears of it: nothing goes on running


async def test_a_server_that_goes_away_leaves_a_report(stub: Stub) -> None:
    session = stub.session("delayed", 20, 60.0, Slo(e2e_ms=1000))

    async def leave() -> None:
        while len(stub.host.invocations) < 10:
            await asyncio.sleep(0.02)
        await stub.gateway.close()

    leaving = asyncio.create_task(leave())
    report = await session.once()
    await leaving
    assert report.verdict.cut_short
    assert "went away" in report.verdict.reasons[0]
    assert report.counts.ok >= 1
    assert report.counts.unsent > 1000


async def test_a_stopped_bench_leaves_a_report(stub: Stub) -> None:
    session = stub.session("delayed", 20, 60.0, Slo(e2e_ms=1000))

    async def stop() -> None:
        while len(stub.host.invocations) < 10:
            await asyncio.sleep(0.02)
        session.stop.set()

    stopping = asyncio.create_task(stop())
    report = await session.once()
    await stopping
    assert report.verdict.cut_short
    assert report.counts.ok >= 5
    assert report.counts.unsent > 1000


async def test_requests_are_dealt_to_several_generators(stub: Stub) -> None:
    session = stub.session("delayed", 40, 1.0)
    session.generators = 2
    report = await session.once()
    assert report.settings.generators == 2
    assert report.counts.ok == 40
    assert sorted(report.requests.number) == list(range(40))


async def test_a_sweep_brackets_what_the_server_can_do(stub: Stub) -> None:
    """One call of 20 ms at a time: 50 a second, no more."""
    session = stub.session("single", 10, 1.5, Slo(e2e_ms=300), drain_s=3.0)
    report = await session.sweep(Sweep(16.0, repeats=1, tolerance=0.6))
    assert report.sweep is not None
    assert report.sweep.first_missed is not None
    assert (report.sweep.best_rate or 0.0) < min(report.sweep.first_missed, 64)
    assert max(point.rate for point in report.sweep.points) <= 128
    for point in report.sweep.points:
        assert point.outcome is not Outcome.MET or point.rate <= (report.sweep.best_rate or 0.0)
