"""What one lender makes and another reads goes from the one to the other, and not through their owner."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
import trustme
import workflows_for_tests as w
from hosts_rig import TOKEN
from neighbours_rig import far, on, three, total

from dataflower.channel.ferry import Forget, Parcel
from dataflower.channel.mux import HEADER, Kind
from dataflower.core import lines
from dataflower.host.api import PeerState
from dataflower.host.meeting import Credentials, Refused, meet_lender
from dataflower.spec.workflow import Batch, Fanout, Resources, Scaling

N = 1_000_000
SLOW = Resources(host="b", bandwidth=4e6)


async def test_a_tensor_goes_from_lender_to_lender_and_not_through_the_owner() -> None:
    async with three() as hosts:
        for _ in range(3):
            assert await hosts.call(far(), x=N) == {"y": total(N)}
        await hosts.settled()
        assert hosts.passed == 0
        assert hosts.straight == 3 * 4 * N
        assert hosts.way.passed > hosts.straight
        assert [peer.state for peer in hosts.b.peers()] == [PeerState.OWNER, PeerState.NEIGHBOUR]


async def test_with_lines_switched_off_everything_goes_by_way_of_the_owner() -> None:
    async with three(peer_lines=False) as hosts:
        assert await hosts.call(far(), x=N) == {"y": total(N)}
        assert hosts.straight == 0
        assert hosts.passed == 2 * 4 * N


async def test_items_of_a_stream_and_a_chain_to_and_fro_go_straight() -> None:
    """Each item is made on `b`, doubled on `c`, and all are summed on `b` again."""
    stages = [
        on("b", "make", "arrays", {"n": "inputs.n", "nbytes": "inputs.nbytes"}, stream=True),
        on("c", "twice", "double", {"x": w.edge("make.out", Fanout.EACH)}),
        on("b", "sum", "sum_all", {"items": w.edge("twice.out", Fanout.GATHER), "gate": "inputs.nbytes"}),
    ]
    ports = (w.Port("n", w.INT), w.Port("nbytes", w.INT))
    async with three() as hosts:
        flow = w.workflow("chain", stages, {"y": "sum.out"}, ports)
        assert await hosts.call(flow, n=10, nbytes=300_000) == {"y": 300_000 * 2 * 45}
        await hosts.settled()
        assert hosts.passed == 0
        assert hosts.straight == 10 * 300_000


async def test_what_is_only_handed_on_comes_home_from_where_it_is() -> None:
    """`c` returns what it got from `b`, whole and in part: the owner, which reads it, has it sent by `b`."""
    stages = [
        on("b", "make", "fill", {"n": "inputs.x"}),
        on("c", "pass", "passthrough", {"x": "make.out"}),
        on("b", "late", "fill", {"n": "inputs.x"}),
    ]
    flow = w.workflow("back", stages, {"y": "pass.out", "z": "late.out"})
    async with three() as hosts:
        found = await hosts.call(flow, x=N)
        for port in ("y", "z"):
            assert np.array_equal(found[port], np.arange(N, dtype=np.float32))
        await hosts.settled()
        assert hosts.straight == 4 * N
        assert hosts.passed == 2 * 4 * N, "once from `b` for each output"


async def test_who_cannot_be_reached_gets_it_by_way_of_the_owner(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "FIRST_PAUSE_S", 600.0)
    async with three() as hosts:
        hosts.lead("127.0.0.1:1")
        assert await hosts.call(far(), x=N) == {"y": total(N)}
        assert hosts.passed == 2 * 4 * N
        assert "can't send to host c" in caplog.text
        assert "by way of this host" in caplog.text
        assert caplog.text.count("can't send to host c") == 1, "it is not tried again at once"
        assert await hosts.call(far(), x=N) == {"y": total(N)}
        hosts.lead(f"127.0.0.1:{hosts.c.peer_port}")
        (joint,) = hosts.owner._engine.remotes.lines._joints.values()
        joint.policy._again_at = 0.0
        await hosts.settled()
        assert await hosts.call(far(), x=N) == {"y": total(N)}
        assert hosts.straight == 4 * N, "after the pause it goes straight"
        before = hosts.passed
        assert await hosts.call(far(), x=N) == {"y": total(N)}
        assert hosts.passed == before


async def test_a_line_that_is_cut_goes_on_where_it_was(caplog: pytest.LogCaptureFixture) -> None:
    async with three() as hosts:
        assert await hosts.call(far(resources=SLOW), x=10) == {"y": 45}
        answer = asyncio.create_task(hosts.call(far(resources=SLOW), x=N))
        for part in (1, 2, 3):
            await hosts.until(lambda part=part: hosts.straight > part * 900_000)
            hosts.way.cut()
        assert await answer == {"y": total(N)}
        assert hosts.passed == 0
        assert hosts.straight < 4 * N + 1_500_000, "what had arrived is not sent again"
        assert hosts.way.connections == 4
    assert "can't send" not in caplog.text


async def test_a_line_that_breaks_for_good_is_gone_round(caplog: pytest.LogCaptureFixture) -> None:
    async with three() as hosts:
        assert await hosts.call(far(resources=SLOW), x=10) == {"y": 45}
        answer = asyncio.create_task(hosts.call(far(resources=SLOW), x=N))
        await hosts.until(lambda: hosts.straight > 900_000)
        hosts.way.refuse()
        assert await answer == {"y": total(N)}
        assert hosts.passed == 2 * 4 * N
    assert "can't send to host c" in caplog.text


async def test_a_cancel_stops_the_bytes_between_two_lenders() -> None:
    async with three() as hosts:
        assert await hosts.call(far(resources=SLOW), x=10) == {"y": 45}
        for _ in range(3):
            before = hosts.straight
            call = await hosts.owner.invoke("far", {"x": N})
            await hosts.until(lambda before=before: hosts.straight > before + 300_000)
            call.cancel()
            await hosts.settled()
            assert hosts.straight < before + 3_000_000
        assert await hosts.call(far(resources=SLOW), x=N) == {"y": total(N)}
        for lender in (hosts.b, hosts.c):
            (owner,) = lender._engine.lender._owners.values()
            inbox = owner.ferry.inbox
            assert not inbox._queues
            assert not inbox._waiters
            assert not inbox._void
        assert hosts.passed == 0


async def test_batches_wait_for_what_comes_straight() -> None:
    stages = [
        on("b", "make", "fill", {"n": "inputs.x"}),
        on("c", "read", "sum_together", {"x": "make.out"}, batch=Batch(max_size=4, wait_ms=200.0)),
    ]
    async with three() as hosts:
        flow = w.workflow("together", stages, {"y": "read.out"})
        await hosts.owner.apply(flow, "together")
        sizes = (10, 50_000, 100_000, 200_000)
        calls = [await hosts.owner.invoke("together", {"x": n}) for n in sizes]
        assert [(await call.result())["y"] for call in calls] == [total(n) for n in sizes]
        assert hosts.passed == 0


async def test_what_waits_for_its_turn_over_there_comes_meanwhile() -> None:
    """While the only container of the reader works, the next inputs cross the line."""
    stages = [
        on("b", "make", "fill", {"n": "inputs.x"}),
        on("c", "read", "sum_slowly", {"x": "make.out"}, scaling=Scaling(max_replicas=1)),
    ]
    async with three() as hosts:
        flow = w.workflow("turns", stages, {"y": "read.out"})
        await hosts.owner.apply(flow, "turns")
        calls = [await hosts.owner.invoke("turns", {"x": N}) for _ in range(4)]
        await hosts.until(lambda: hosts.straight == 4 * 4 * N)
        done = [call for call in calls if call.trace is not None and call.trace.ended]
        assert len(done) < 3
        assert [(await call.result())["y"] for call in calls] == [total(N)] * 4
        assert hosts.passed == 0


async def test_who_was_not_introduced_is_not_let_in(caplog: pytest.LogCaptureFixture) -> None:
    """Nor who comes a second time with a key that was used."""
    async with three() as hosts:
        await hosts.call(far(), x=10)
        (key,) = hosts.c._engine.lender.visits
        for tried in (os.urandom(16), key):
            address = f"127.0.0.1:{hosts.c.peer_port}"
            greeting = ("b", tried, False)
            sock, welcome, _ = await meet_lender(address, Credentials(TOKEN), None, greeting, 5.0, visits=True)
            sock.close()
            assert not welcome.known
        with pytest.raises(Refused, match="token"):
            await meet_lender(address, Credentials("another"), None, greeting, 5.0, visits=True)
        assert [peer.state for peer in hosts.c.peers()] == [PeerState.OWNER, PeerState.NEIGHBOUR]
        assert await hosts.call(far(), x=N) == {"y": total(N)}
        assert hosts.straight == 4 * N


@pytest.mark.parametrize(
    "noise",
    [
        b"\xff" * 100,
        HEADER.pack(Kind.RESUME, 0, 0, 0) + HEADER.pack(Kind.OPEN, 16, 1, 1 << 40) + bytes(16),
        HEADER.pack(Kind.RESUME, 0, 0, 0) + HEADER.pack(Kind.MESSAGE, 4, 0, 0) + msgspec.msgpack.encode(Forget(1)),
        HEADER.pack(Kind.RESUME, 0, 0, 0) + HEADER.pack(Kind.MESSAGE, 9, 0, 0) + msgspec.msgpack.encode(Parcel(1, b"")),
    ],
    ids=["noise", "no memory", "no arena of its own", "no ticket"],
)
async def test_nonsense_of_a_neighbour_ends_its_line_and_nothing_else(
    noise: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with three() as hosts:
        await hosts.call(far(), x=10)
        hosts.way.cut()
        (key,) = hosts.c._engine.lender.visits
        address = f"127.0.0.1:{hosts.c.peer_port}"
        sock, welcome, _ = await meet_lender(address, Credentials(TOKEN), None, ("b", key, True), 5.0, visits=True)
        assert welcome.known
        await asyncio.get_running_loop().sock_sendall(sock, noise)
        await hosts.until(lambda: "broke the protocol" in caplog.text)
        sock.close()
        assert await hosts.call(far(), x=N) == {"y": total(N)}
        assert [peer.state for peer in hosts.c.peers() if peer.state is PeerState.OWNER]


async def test_lines_between_lenders_are_encrypted_as_all_are(tmp_path: Path) -> None:
    authority = trustme.CA()
    files = {}
    made = authority.issue_cert("127.0.0.1")
    for part, blob in (
        ("cert", made.cert_chain_pems[0]),
        ("key", made.private_key_pem),
        ("ca", authority.cert_pem),
    ):
        files[f"peer_tls_{part}_file"] = tmp_path / f"{part}.pem"
        blob.write_to_path(tmp_path / f"{part}.pem")
    secret = b"a secret that nobody else may read "
    async with three(lenders={**files, "peer_token": ""}, peer_token="", **files) as hosts:
        stages = [
            on("b", "make", "repeat_bytes", {"text": "inputs.x", "times": "inputs.n"}),
            on("c", "read", "checksum", {"x": "make.out"}),
        ]
        flow = w.workflow("secret", stages, {"y": "read.out"}, (w.Port("x"), w.Port("n", w.INT)))
        assert await hosts.call(flow, x=secret.decode(), n=30_000) == {"y": 30_000 * sum(secret)}
        assert hosts.straight == 30_000 * len(secret)
        assert hosts.passed == 0
        assert not hosts.way.has_seen(b"a secret")
