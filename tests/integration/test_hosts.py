"""A host that has another one run some of its stages: the same results, wherever a stage runs."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
import workflows_for_tests as w
from hosts_rig import PATIENCE_S, config, pair, trio

from dataflower.core.pressure import Pressure
from dataflower.errors import DataflowerError, FailedPrecondition, InvalidArgument, InvocationFailed
from dataflower.host import peer_wire
from dataflower.host.api import PeerState
from dataflower.host.runtime import Runtime
from dataflower.host.settings import DefaultIsolation
from dataflower.spec.workflow import Batch, Resources, Scaling, Workflow


async def test_stages_run_here_and_there_with_the_same_results() -> None:
    async with pair("chain.s1=b", "map_reduce.double=b", "counting.count=b", "summing.sum=b") as hosts:
        assert await hosts.call(w.chain(3), x={"a": [1, "two", None]}) == {"y": {"a": [1, "two", None]}}
        assert hosts.guests() == 1
        assert await hosts.call(w.map_reduce(), n=20) == {"total": 380}
        assert await hosts.call(w.counting(), n=40) == {"numbers": list(range(40))}
        assert await hosts.call(w.summing(), items=[1, 2, 3]) == {"totals": [1, 3, 6]}
        (there,), (here,) = hosts.owner.peers(), hosts.lender.peers()
        assert (there.name, there.state, there.containers) == ("b", PeerState.CONNECTED, hosts.guests())
        assert (here.name, here.state) == ("a", PeerState.OWNER)


async def test_tensors_go_there_and_back() -> None:
    async with pair("chain.s1=b", "tensors.fill=b") as hosts:
        big = np.arange(3 << 20, dtype=np.uint8)
        for _ in range(3):
            assert np.array_equal((await hosts.call(w.chain(3), x={"big": big, "small": big[:10]}))["y"]["big"], big)
        found = await hosts.call(w.tensors(), n=200_000)
        assert np.array_equal(found["doubled"], 2 * found["plain"])
        await hosts.settled()
        (there,) = hosts.owner.peers()
        # Passed on by reference over there, an input does not come back as bytes.
        assert 9 << 20 <= there.bytes_out < 10 << 20
        assert 200_000 * 4 <= there.bytes_in < 3 << 20


async def test_eight_readers_on_a_host_share_one_copy() -> None:
    """A broadcast tensor crosses once."""
    stages = [w.stage(f"sum{i}", "checksum", {"x": "inputs.x"}) for i in range(8)]
    workflow = w.workflow("wide", stages, {f"y{i}": f"sum{i}.out" for i in range(8)})
    x = np.ones(1 << 20, np.uint8)
    async with pair(*(f"wide.sum{i}=b" for i in range(8)), max_containers=8) as hosts:
        found = await hosts.call(workflow, x=x)
        assert len(set(found.values())) == 1
        assert hosts.owner.peers()[0].bytes_out == 1 << 20


async def test_a_workflow_says_where_its_stage_runs() -> None:
    workflow = w.single("pid", resources=Resources(host="b"))
    async with pair(isolation=DefaultIsolation.PROCESS, lender={"isolation": DefaultIsolation.PROCESS}) as hosts:
        first = await hosts.call(workflow, x=1)
        assert first["y"] in hosts.lender.container_pids().values()
        assert not hosts.owner.container_pids()
        elsewhere = dataclasses.replace(workflow, name="elsewhere")
        stage = dataclasses.replace(workflow.stages["only"], resources=Resources(host="c"))
        with pytest.raises(FailedPrecondition, match="knows no host 'c'"):
            await hosts.owner.apply(dataclasses.replace(elsewhere, stages={"only": stage}), "elsewhere")


async def test_a_host_that_is_no_longer_known_is_named_after_a_restart(tmp_path: Path) -> None:
    def load(text: str, file: str) -> Workflow:
        return w.single("passthrough", resources=Resources(host="b"))

    async with Runtime(config(state_dir=tmp_path, peers=("b=127.0.0.1:1",)), load=load) as host:
        await host.apply(load("", ""), "text")
    async with Runtime(config(state_dir=tmp_path), load=load) as host:
        invocation = await host.invoke("passthrough", {"x": 1})
        with pytest.raises(InvocationFailed, match="knows no host 'b'"):
            await invocation.result()


async def test_containers_with_a_bandwidth_send_everything_all_the_same() -> None:
    slow = Resources(bandwidth=20e6)
    stages = [
        w.stage("here", "double", {"x": "inputs.x"}, resources=slow),
        w.stage("there", "double", {"x": "here.out"}, resources=dataclasses.replace(slow, host="b")),
    ]
    x = np.arange(1 << 20, dtype=np.uint8)
    async with pair() as hosts:
        assert np.array_equal((await hosts.call(w.workflow("slow", stages, {"y": "there.out"}), x=x))["y"], 4 * x)


async def test_failures_and_cancels_cross() -> None:
    async with pair("fail.only=b", "sleep.only=b", "kill_self.only=b", "sleep_deaf.only=b") as hosts:
        with pytest.raises(InvocationFailed, match="ValueError"):
            await hosts.call(w.single("fail"), x="no")
        with pytest.raises(InvocationFailed, match="SIGKILL"):
            await hosts.call(w.single("kill_self"), x=1)
        for name in ("sleep", "sleep_deaf"):
            await hosts.owner.apply(w.single(name), name)
            invocation = await hosts.owner.invoke(name, {"x": 60.0})
            await hosts.until(lambda name=name: hosts.owner.workflow(name).stages[0].busy == 1)
            invocation.cancel()
            await hosts.settled()


async def test_a_crash_over_there_is_tried_again(tmp_path: os.PathLike[str]) -> None:
    async with pair("kill_self_once.only=b") as hosts:
        assert await hosts.call(w.retried("kill_self_once"), x=f"{tmp_path}/mark") == {"y": "survived"}


async def test_a_cancel_reaches_a_task_whose_bytes_are_on_their_way() -> None:
    async with pair("chain.s0=b") as hosts:
        await hosts.call(w.chain(1), x=1)
        hosts.way.piece = 16
        invocation = await hosts.owner.invoke("chain", {"x": np.zeros(64 << 20, np.uint8)})
        await hosts.until(lambda: hosts.owner.peers()[0].bytes_out > 0)
        invocation.cancel()
        await hosts.settled()
        assert hosts.way.passed < 8 << 20
        hosts.way.piece = 1 << 16
        assert await hosts.call(w.chain(1), x=2) == {"y": 2}


async def test_who_does_not_know_the_token_is_turned_away(caplog: pytest.LogCaptureFixture) -> None:
    async with pair("chain.s0=b", lender={"peer_token": "another"}) as hosts:
        with pytest.raises(InvocationFailed, match="token is another one"):
            await hosts.call(w.chain(1), x=1)
        (there,) = hosts.owner.peers()
        assert there.state is PeerState.LOST
        assert "token" in there.reason
        assert not hosts.lender.peers()
    assert "turned away" in caplog.text


async def test_strangers_are_never_let_in_by_default() -> None:
    for settings, said in (
        ({"peer_port": 0, "peer_token": ""}, "must know each other"),
        ({"peers": ("b=127.0.0.1:1",), "peer_token": ""}, "must know each other"),
        ({"peers": ("b",)}, "name=host:port"),
        ({"peers": ("b=h:1", "b=h:2")}, "already"),
        ({"placement": ("x.y=nowhere",)}, "knows no host"),
        ({"placement": ("x",)}, "workflow.stage=host"),
    ):
        with pytest.raises((InvalidArgument, FailedPrecondition), match=said):
            async with Runtime(config(**settings)):
                pass


async def test_a_host_of_another_version_is_refused_and_named() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = peer_wire.encode(peer_wire.Challenge(3, "old", os.urandom(32)))
        writer.write(struct.pack("<I", len(said)) + said)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = config(host_name="a", peers=(f"b=127.0.0.1:{port}",), placement=("chain.s0=b",))
    async with server, Runtime(settings) as owner:
        await owner.apply(w.chain(1), "chain")
        invocation = await owner.invoke("chain", {"x": 1})
        with pytest.raises(InvocationFailed, match="host old speaks version 3 between hosts, this one 4"):
            await invocation.result()


async def test_noise_on_the_port_disturbs_nobody() -> None:
    async with pair("chain.s0=b") as hosts:
        port = hosts.lender.peer_port
        assert port is not None
        for noise in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 5000, b"\x04\x00\x00\x00\xc1\xc1\xc1\xc1"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(noise)
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()
        assert await hosts.call(w.chain(1), x=1) == {"y": 1}


async def test_a_host_that_is_not_there_is_named() -> None:
    async with pair("chain.s0=b", peer_timeout_s=0.5) as hosts:
        await hosts.call(w.chain(1), x=1)
        hosts.way.refuse()
        with pytest.raises(DataflowerError, match="'b'"):
            await hosts.call(w.chain(1), x=1)
        assert hosts.owner.peers()[0].state is PeerState.LOST


def _files(authority: trustme.CA, directory: Path, name: str) -> dict[str, Path]:
    """Certificate, key and authority of a host, as settings."""
    made = authority.issue_cert("127.0.0.1", "localhost")
    paths = {part: directory / f"{name}-{part}.pem" for part in ("cert", "key", "ca")}
    made.cert_chain_pems[0].write_to_path(paths["cert"])
    made.private_key_pem.write_to_path(paths["key"])
    authority.cert_pem.write_to_path(paths["ca"])
    return {f"peer_tls_{part}_file": path for part, path in paths.items()}


async def test_with_certificates_everything_is_encrypted_and_no_token_is_needed(tmp_path: Path) -> None:
    authority = trustme.CA()
    here, there = (_files(authority, tmp_path, name) for name in "ab")
    async with pair("chain.s0=b", lender={**there, "peer_token": ""}, peer_token="", **here) as hosts:
        x = np.frombuffer(b"a secret that nobody else may read" * 100_000, np.uint8)
        answers = [hosts.call(w.chain(1), x=x) for _ in range(2)]
        for answer in answers:
            assert np.array_equal((await answer)["y"], x)
        assert not hosts.way.has_seen(b"a secret")
        hosts.way.cut()
        assert np.array_equal((await hosts.call(w.chain(1), x=x))["y"], x)
        assert hosts.way.connections == 2


async def test_a_certificate_of_another_authority_is_turned_away(tmp_path: Path) -> None:
    here, there = _files(trustme.CA(), tmp_path, "a"), _files(trustme.CA(), tmp_path, "b")
    async with pair("chain.s0=b", lender=there, **here) as hosts:
        with pytest.raises(InvocationFailed, match="certificate"):
            await hosts.call(w.chain(1), x=1)
        assert not hosts.lender.peers()


async def test_a_host_without_a_certificate_is_turned_away(tmp_path: Path) -> None:
    there = _files(trustme.CA(), tmp_path, "b")
    async with pair("chain.s0=b", lender=there, peer_tls_ca_file=there["peer_tls_ca_file"]) as hosts:
        with pytest.raises(InvocationFailed, match="'b'"):
            await hosts.call(w.chain(1), x=1)
        assert not hosts.lender.peers()


def filling(**rest: Any) -> Workflow:
    """One stage that makes 4 `x` bytes."""
    return w.workflow("fill", [w.stage("only", "fill", {"n": "inputs.x"}, **rest)], {"y": "only.out"})


async def test_a_function_over_there_goes_on_while_its_last_outputs_travel() -> None:
    """One container, which may send 2 MB a second: its second task begins long before the outputs of its first came."""
    slow = filling(resources=Resources(host="b", bandwidth=2e6), scaling=Scaling(max_replicas=1))
    async with pair(pressure=Pressure.OFF) as hosts:
        await hosts.call(slow, x=10)
        calls = [await hosts.owner.invoke("fill", {"x": n}) for n in (400_000, 10)]
        for call in calls:
            await call.result()
        await hosts.settled()
        first, second = [(await hosts.owner.get(call.id)).trace.tasks[0] for call in calls]  # type: ignore[union-attr]
        assert first.container == second.container
        assert second.started < first.sent - 0.3


async def test_a_stage_over_there_grows_when_sending_is_what_is_slow() -> None:
    slow = filling(resources=Resources(host="b", bandwidth=2e6), scaling=Scaling(max_replicas=2))
    async with pair() as hosts:
        await hosts.call(slow, x=10)
        calls = [await hosts.owner.invoke("fill", {"x": 400_000})]
        await hosts.until(lambda: hosts.owner.peers()[0].bytes_in > 100_000)
        calls.append(await hosts.owner.invoke("fill", {"x": 400_000}))
        for call in calls:
            await call.result()
        await hosts.settled()
        first, second = [(await hosts.owner.get(call.id)).trace.tasks[0] for call in calls]  # type: ignore[union-attr]
        assert first.container != second.container
        assert second.started < first.sent


async def test_a_container_here_is_held_back_while_it_has_much_to_send() -> None:
    """The outputs of a stage here are read over there: they go at the rate of the stage here."""
    stages = [
        w.stage("here", "fill", {"n": "inputs.x"}, resources=Resources(bandwidth=2e6), scaling=Scaling(max_replicas=2)),
        w.stage("there", "checksum", {"x": "here.out"}, resources=Resources(host="b")),
    ]
    async with pair() as hosts:
        two = w.workflow("two", stages, {"y": "there.out"})
        await hosts.call(two, x=10)
        calls = [await hosts.owner.invoke("two", {"x": 400_000})]
        await hosts.until(lambda: hosts.owner.peers()[0].bytes_out > 100_000)
        calls.append(await hosts.owner.invoke("two", {"x": 400_000}))
        for call in calls:
            await call.result()
        await hosts.settled()
        first, second = [(await hosts.owner.get(call.id)).trace.tasks[0] for call in calls]  # type: ignore[union-attr]
        assert first.stage == second.stage == "here"
        assert first.container != second.container


async def test_cancels_and_crashes_while_outputs_travel_leave_nothing_behind() -> None:
    slow = filling(resources=Resources(host="b", bandwidth=1e6), scaling=Scaling(max_replicas=1))
    async with pair(isolation=DefaultIsolation.PROCESS, lender={"isolation": DefaultIsolation.PROCESS}) as hosts:
        await hosts.call(slow, x=10)
        arenas = []
        for _ in range(3):
            before = hosts.owner.peers()[0].bytes_in
            cancelled = await hosts.owner.invoke("fill", {"x": 400_000})
            await hosts.until(lambda before=before: hosts.owner.peers()[0].bytes_in > before + 50_000)
            cancelled.cancel()
            await hosts.settled()
            arenas.append(hosts.owner.usage().arena_bytes)
        assert hosts.owner.peers()[0].bytes_in < 3_000_000, "what nobody wants comes no further"
        assert len(set(arenas)) == 1, "and its memory is used again"
        told = await hosts.owner.invoke("fill", {"x": 400_000})
        before = hosts.owner.peers()[0].bytes_in
        await hosts.until(lambda: hosts.owner.peers()[0].bytes_in > before + 50_000)
        (pid,) = hosts.lender.container_pids().values()
        os.kill(pid, signal.SIGKILL)
        found = (await told.result())["y"]
        assert np.array_equal(found, np.arange(400_000, dtype=np.float32)), "it had handed its outputs over"


@contextlib.asynccontextmanager
async def passing_on() -> AsyncIterator[tuple[Runtime, Any]]:
    """2 MB that come at 2 MB a second from one host over there, and go to another while they come; from the owner on.

    Gives the owner and the call, as soon as a quarter is at the reader's.
    """
    slow = Resources(host="b", bandwidth=2e6)
    stages = [
        w.stage("make", "fill", {"n": "inputs.x"}, resources=slow, scaling=Scaling(max_replicas=1)),
        w.stage("read", "checksum", {"x": "make.out"}, resources=Resources(host="c")),
    ]
    async with trio() as (owner, _, reader):
        await owner.apply(w.workflow("far", stages, {"y": "read.out"}), "far")
        assert (await (await owner.invoke("far", {"x": 10})).result())["y"] == 45
        call = await owner.invoke("far", {"x": 500_000})
        async with asyncio.timeout(PATIENCE_S):
            while sum(peer.bytes_in for peer in reader.peers()) < 500_000:
                await asyncio.sleep(0.005)
        yield owner, call


async def test_from_one_host_over_there_to_another_bytes_go_on_while_they_come() -> None:
    """Much of it is at its reader's host before all of it is here."""
    async with passing_on() as (owner, call):
        assert owner.peers()[0].bytes_in < 2_000_000, "not all of it is here"
        assert (await call.result())["y"] == 500_000 * 499_999 // 2
        there = {peer.name: peer.bytes_out for peer in owner.peers()}
        assert 2_000_000 <= there["c"] < 2_100_000, "and it went there once"


async def test_a_call_that_is_cancelled_leaves_nothing_of_what_was_passed_on() -> None:
    async with passing_on() as (owner, call):
        call.cancel()
        for n in (400_000, 500_000):
            assert (await (await owner.invoke("far", {"x": n})).result())["y"] == n * (n - 1) // 2
        async with asyncio.timeout(PATIENCE_S):
            while owner.statistics().core.slots or owner.statistics().core.tasks:
                await asyncio.sleep(0.005)


async def test_a_long_line_changes_nothing_but_the_time() -> None:
    """25 ms each way: results, order, and a cancel that overtakes bytes."""
    async with pair("chain.s1=b", "map_reduce.double=b", "summing.sum=b", "tensors.fill=b") as hosts:
        hosts.way.delay_s = 0.025
        assert await hosts.call(w.chain(3), x=[1, "two"]) == {"y": [1, "two"]}
        assert await hosts.call(w.map_reduce(), n=6) == {"total": 30}
        assert await hosts.call(w.summing(), items=[1, 2, 3]) == {"totals": [1, 3, 6]}
        found = await hosts.call(w.tensors(), n=200_000)
        assert np.array_equal(found["doubled"], 2 * found["plain"])
        invocation = await hosts.owner.invoke("chain", {"x": np.zeros(16 << 20, np.uint8)})
        await hosts.until(lambda: hosts.owner.peers()[0].bytes_out > 0)
        invocation.cancel()
        await hosts.settled()
        assert await hosts.call(w.chain(3), x=2) == {"y": 2}


async def test_a_deadline_is_kept_over_there_without_a_word_from_here(tmp_path: Path) -> None:
    """The line stands still from before the deadline on, so what stops the function can't have come from here."""
    async with pair("say_when_stopped.only=b") as hosts:
        flow = w.single("say_when_stopped", scaling=Scaling(min_replicas=1))
        await hosts.owner.apply(flow, "stop")
        await hosts.owner.wait_ready("say_when_stopped")  # a start may take longer than the deadline allows
        mark = tmp_path / "mark"
        invocation = await hosts.owner.invoke("say_when_stopped", {"x": str(mark)}, deadline=time.monotonic() + 1.5)
        await hosts.until(mark.with_suffix(".started").exists)
        hosts.way.delay_s = 60.0
        before = hosts.owner.peers()[0]
        await hosts.until(mark.exists)
        with pytest.raises(InvocationFailed, match="DeadlineExceeded"):
            await invocation.result()
        assert before.state is PeerState.CONNECTED
        hosts.way.delay_s = 0.0
        hosts.way.cut()


async def test_outputs_of_a_cancelled_member_of_a_batch_come_no_further() -> None:
    """And those of the other do: each waits for its own bytes alone."""
    slow = Resources(host="b", bandwidth=1e6)
    flow = w.single("fill_together", batch=Batch(max_size=2, wait_ms=500.0), resources=slow)
    async with pair() as hosts:
        await hosts.owner.apply(flow, "fill")
        calls = [await hosts.owner.invoke("fill_together", {"x": n}) for n in (200_000, 20_000_000)]
        assert (await calls[0].result())["y"].sum(dtype=int) == 1_400_000
        assert not calls[1].is_over
        calls[1].cancel()
        await hosts.settled()
        assert hosts.owner.peers()[0].bytes_in < 10_000_000


async def test_the_end_of_a_cancelled_task_does_not_wait_for_bytes_of_the_one_before() -> None:
    """They are in one container: what the first made is on its way for seconds."""
    slow = Resources(host="b", bandwidth=1e6)
    flow = w.single("fill_or_wait", resources=slow, scaling=Scaling(max_replicas=1))
    async with pair(pressure=Pressure.OFF) as hosts:
        await hosts.call(flow, x=10)
        first = await hosts.owner.invoke("fill_or_wait", {"x": 1_000_000})
        await hosts.until(lambda: hosts.owner.peers()[0].bytes_in > 50_000)
        second = await hosts.owner.invoke("fill_or_wait", {"x": -1})
        await hosts.until(lambda: hosts.owner.workflow("fill_or_wait").stages[0].busy == 1)
        await hosts.until(lambda: hosts.owner.statistics().core.tasks == 2)
        second.cancel()
        await hosts.until(lambda: hosts.owner.statistics().core.tasks == 1)
        assert hosts.owner.peers()[0].bytes_in < 3_000_000
        assert not first.is_over
        assert (await first.result())["y"].size == 1_000_000


async def test_what_is_due_first_goes_first() -> None:
    """A small array that is due overtakes a large one that is not, on a line that both need."""
    slow = Resources(bandwidth=1e6)
    stages = [
        w.stage("make", "fill", {"n": "inputs.x"}, resources=slow, scaling=Scaling(max_replicas=1)),
        w.stage("read", "checksum", {"x": "make.out"}, resources=Resources(host="b"), scaling=Scaling(max_replicas=2)),
    ]
    async with pair(pressure=Pressure.OFF) as hosts:
        flow = w.workflow("due", stages, {"y": "read.out"})
        await hosts.call(flow, x=10)
        large = await hosts.owner.invoke("due", {"x": 1_000_000})
        await hosts.until(lambda: hosts.owner.peers()[0].bytes_out > 50_000)
        small = await hosts.owner.invoke("due", {"x": 50_000}, deadline=time.monotonic() + PATIENCE_S)
        assert (await small.result())["y"] == 50_000 * 49_999 // 2
        assert hosts.owner.peers()[0].bytes_out < 2_000_000
        large.cancel()
