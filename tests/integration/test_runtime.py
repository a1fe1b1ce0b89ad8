"""A real host with real containers."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import workflows_for_tests as w

from dataflower.channel.arena import Slot
from dataflower.channel.tensor import copy_into
from dataflower.errors import Code, DataflowerError, InvalidArgument, InvocationFailed, NotFound, Unavailable
from dataflower.host import intake
from dataflower.host.api import State
from dataflower.host.journal import Entry
from dataflower.host.logs import tail
from dataflower.host.runtime import Runtime
from dataflower.host.settings import DefaultIsolation, HostConfig
from dataflower.spec.workflow import Workflow


def config(**settings: Any) -> HostConfig:
    places = {"code_path": w.CODE_PATH, "writable_paths": (tempfile.gettempdir(),)}  # functions leave marks there
    return HostConfig(**{**places, "cpus": 2, "cancel_grace_s": 0.3, "stop_grace_s": 2.0, **settings})


@pytest.fixture
async def host() -> AsyncIterator[Runtime]:
    async with Runtime(config()) as running:
        yield running
        await settle(running)
        assert running.statistics().core.slots == 0
        assert running.statistics().core.invocations == 0


async def settle(host: Runtime, timeout_s: float = 20.0) -> None:
    """Wait for the messages that follow the end of an invocation (cancelled tasks, released slots)."""
    end = time.monotonic() + timeout_s
    while (core := host.statistics().core).slots or core.invocations or core.tasks:
        if time.monotonic() > end:
            return
        await asyncio.sleep(0.01)


async def call(host: Runtime, workflow: Workflow, **inputs: Any) -> dict[str, Any]:
    await host.apply(workflow, workflow.name)
    return await (await host.invoke(workflow.name, inputs)).result()


@pytest.mark.parametrize("is_deleted", [False, True])
async def test_a_submission_goes_to_what_serves_once_it_is_written(
    host: Runtime, monkeypatch: pytest.MonkeyPatch, is_deleted: bool
) -> None:
    await host.apply(w.chain(1), "first")
    write = host._journal.accept

    async def accept(entry: Entry) -> None:
        await write(entry)
        if is_deleted:
            await host.delete("chain")
        elif entry.version == 1:
            await host.apply(w.chain(2), "second")

    monkeypatch.setattr(host._journal, "accept", accept)
    if is_deleted:
        with pytest.raises(NotFound, match="no workflow 'chain'"):
            await host.submit("chain", {"x": 1}, invocation="job")
        with pytest.raises(NotFound):
            await host.get("job")
        return
    await host.submit("chain", {"x": 1}, invocation="job")
    *_, record = [found async for found in host.watch("job")]
    assert (record.version, record.state, record.outputs) == (2, State.SUCCEEDED, {"y": 1})


async def test_a_submission_runs_although_its_caller_leaves_while_it_is_written(
    host: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.apply(w.chain(1), "chain")
    write = host._journal.accept
    writing, may_go_on = asyncio.Event(), asyncio.Event()

    async def accept(entry: Entry) -> None:
        writing.set()
        await may_go_on.wait()
        await write(entry)

    monkeypatch.setattr(host._journal, "accept", accept)
    caller = asyncio.create_task(host.submit("chain", {"x": 1}, invocation="job"))
    await writing.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    again = asyncio.create_task(host.submit("chain", {"x": 1}, invocation="job"))
    may_go_on.set()
    assert (await again).id == "job"
    *_, record = [found async for found in host.watch("job")]
    assert (record.state, record.outputs) == (State.SUCCEEDED, {"y": 1})
    assert [found.id for found in host.recent()] == ["job"]


async def test_a_value_goes_through_a_chain(host: Runtime) -> None:
    assert await call(host, w.chain(3), x={"a": [1, "two", None]}) == {"y": {"a": [1, "two", None]}}
    assert [(s.stage, s.idle, s.busy, s.done) for s in host.workflow("chain").stages] == [
        (f"s{i}", 1, 0, 1) for i in range(3)
    ]


async def test_fan_out_and_gather(host: Runtime) -> None:
    assert await call(host, w.map_reduce(), n=20) == {"total": 380}
    assert await call(host, w.map_reduce(), n=0) == {"total": 0}


async def test_a_stream_comes_item_by_item(host: Runtime) -> None:
    await host.apply(w.counting(), "counting")
    seen = [(o.port, o.index, o.value) async for o in (await host.invoke("counting", {"n": 40})).outputs()]
    assert seen == [("numbers", i, i) for i in range(40)]
    assert await call(host, w.counting(), n=0) == {"numbers": []}


async def test_leaving_a_stream_cancels_the_invocation(host: Runtime) -> None:
    await host.apply(w.counting(), "counting")
    outputs = (await host.invoke("counting", {"n": 10**9})).outputs()
    assert (await anext(outputs)).value == 0
    await outputs.aclose()
    await settle(host)
    assert host.statistics().cancelled == 1
    assert await call(host, w.counting(), n=1) == {"numbers": [0]}


async def test_the_caller_feeds_a_stream(host: Runtime) -> None:
    await host.apply(w.summing(), "summing")
    invocation = await host.invoke("summing", {}, open_inputs=("items",))
    outputs = invocation.outputs()
    for item, expected in ((1, 1), (2, 3), (3, 6)):
        await invocation.feed("items", item)
        assert (await anext(outputs)).value == expected
    await invocation.end_input("items")
    assert [o async for o in outputs] == []
    with pytest.raises(DataflowerError, match="has been ended"):
        await invocation.feed("items", 4)


async def test_a_stream_input_can_be_given_whole(host: Runtime) -> None:
    assert (await call(host, w.summing(), items=[1] * 100))["totals"] == list(range(1, 101))


async def test_tensors_travel_by_reference_and_come_out_as_copies(host: Runtime) -> None:
    n = 100_000
    result = await call(host, w.tensors(), n=n)
    expected = np.arange(n, dtype=np.float32)
    np.testing.assert_array_equal(result["doubled"], expected * 2)
    np.testing.assert_array_equal(result["plain"], expected)
    result["plain"][0] = 1
    assert host.statistics().engine.arenas >= 2


async def test_tensors_pass_through_streams_and_items_by_reference(host: Runtime) -> None:
    stages = [
        w.stage("make", "arrays", {"n": "inputs.n", "nbytes": "inputs.nbytes"}, stream=True),
        w.stage("relay", "relay", {"items": "make.out"}, stream=True, stream_inputs=("items",)),
        w.stage("each", "passthrough", {"x": w.edge("relay.out", w.Fanout.EACH)}),
    ]
    ports = (w.Port("n", w.INT), w.Port("nbytes", w.INT))
    stages.append(w.stage("sum", "checksum", {"x": "each.out"}))
    outputs = {"sums": w.edge("sum.out", w.Fanout.GATHER), "arrays": w.edge("each.out", w.Fanout.GATHER)}
    result = await call(host, w.workflow("passing", stages, outputs, ports), n=60, nbytes=40_000)
    assert result["sums"] == [40_000 * i for i in range(60)]
    assert [int(array[-1]) for array in result["arrays"]] == list(range(60))
    assert host.statistics().engine.violations == 0


async def test_a_container_that_cannot_be_started_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    async with Runtime(config(log_dir=tmp_path / "file")) as host:
        with pytest.raises(InvocationFailed, match="could not be started"):
            await call(host, w.single("double"), x=1)


async def test_output_items_are_read_only_views(host: Runtime) -> None:
    await host.apply(w.tensors(), "tensors")
    async for item in (await host.invoke("tensors", {"n": 50_000})).outputs():
        assert item.value.sum() > 0
        assert not item.value.flags.writeable
        del item


@pytest.mark.parametrize("kept", [True, False])
async def test_outputs_that_nobody_reads_expire(kept: bool) -> None:
    async with Runtime(config(output_ttl_s=0.1)) as host:
        await host.apply(w.tensors(), "tensors")
        invocation = await host.invoke("tensors", {"n": 50_000})
        await invocation.wait_over()
        if not kept:
            del invocation
        await settle(host)
        assert host.statistics().core.slots == 0
        if kept:
            with pytest.raises(InvocationFailed, match="nobody read the outputs in time"):
                await invocation.result()


async def test_tensors_of_the_caller_go_in_and_straight_out(host: Runtime) -> None:
    given = np.random.default_rng(1).standard_normal((300, 500))
    result = await call(host, w.chain(2), x={"deep": [given]})
    np.testing.assert_array_equal(result["y"]["deep"][0], given)


async def test_a_long_body_is_spilled(host: Runtime) -> None:
    text = "0123456789" * 100_000
    assert await call(host, w.chain(2), x=text) == {"y": text}


async def test_an_exception_becomes_a_typed_failure(host: Runtime) -> None:
    with pytest.raises(InvocationFailed, match="no good: 7") as caught:
        await call(host, w.single("fail"), x=7)
    failure = caught.value.failure
    assert (failure.kind, failure.stage, failure.attempt, failure.code) == ("ValueError", "only", 1, Code.INTERNAL)
    assert "functions_for_tests.py" in failure.traceback
    assert await call(host, w.single("double"), x=2) == {"y": 4}


async def test_a_dead_container_fails_its_task_and_is_replaced(host: Runtime) -> None:
    with pytest.raises(InvocationFailed, match="SIGKILL") as caught:
        await call(host, w.single("kill_self"), x=1)
    assert caught.value.failure.kind == "ContainerCrashed"
    assert await call(host, w.single("double"), x=2) == {"y": 4}


async def test_a_retry_survives_a_dead_container(host: Runtime, tmp_path: Path) -> None:
    assert await call(host, w.retried("kill_self_once"), x=str(tmp_path / "mark")) == {"y": "survived"}


async def test_a_setup_that_raises_is_told(host: Runtime) -> None:
    with pytest.raises(InvocationFailed, match="no model here"):
        await call(host, w.single("BrokenSetup"), x=1)


async def test_a_function_that_is_not_there_is_told(host: Runtime) -> None:
    with pytest.raises(InvocationFailed, match="nowhere"):
        await call(host, w.single("nowhere"), x=1)


async def test_containers_outlive_their_zygote(host: Runtime) -> None:
    await call(host, w.retried("pid"), x=1)
    before = host.container_pids()
    (zygote,) = host.zygote_pids()
    os.kill(zygote, signal.SIGKILL)
    while host.statistics().engine.launcher.zygotes_lost == 0:
        await asyncio.sleep(0.01)
    await call(host, w.retried("pid"), x=1)
    assert host.container_pids() == before
    os.kill(*before.values(), signal.SIGKILL)
    await call(host, w.retried("pid"), x=1)
    assert host.container_pids() != before
    assert host.zygote_pids() not in ((zygote,), ())


async def test_a_deadline_ends_it_and_a_deaf_container_is_killed(host: Runtime) -> None:
    await host.apply(w.single("sleep_deaf"), "sleep_deaf")
    await (await host.invoke("sleep_deaf", {"x": 0.0})).result()
    (pid,) = host.container_pids().values()
    invocation = await host.invoke("sleep_deaf", {"x": 600.0}, deadline=time.monotonic() + 0.2)
    with pytest.raises(InvocationFailed) as caught:
        await invocation.result()
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    while pid in host.container_pids().values():
        await asyncio.sleep(0.01)


async def test_cancelling_from_elsewhere_reaches_the_reader(host: Runtime) -> None:
    await host.apply(w.single("sleep"), "sleep")
    invocation = await host.invoke("sleep", {"x": 600.0}, invocation="me")
    reader = asyncio.ensure_future(invocation.result())
    await asyncio.sleep(0)
    assert (await host.cancel("me")).state is State.CANCELLED
    with pytest.raises(InvocationFailed, match="on request"):
        await reader
    assert (await host.cancel("me")).state is State.CANCELLED


@pytest.mark.parametrize(
    ("inputs", "message"),
    [({}, "missing"), ({"n": 1, "m": 2}, "did you mean|it takes|known: n"), ({"n": "three"}, "n")],
)
async def test_bad_inputs_are_refused_before_anything_runs(host: Runtime, inputs: dict[str, Any], message: str) -> None:
    await host.apply(w.counting(), "counting")
    with pytest.raises(InvalidArgument, match=message):
        await host.invoke("counting", inputs)
    assert host.statistics().accepted == 0


async def test_unknown_names_are_answered_with_the_nearest(host: Runtime) -> None:
    await host.apply(w.counting(), "counting")
    with pytest.raises(NotFound, match="did you mean 'counting'"):
        await host.invoke("countin", {"n": 1})
    with pytest.raises(NotFound):
        await host.get("nobody")


async def test_an_id_is_used_once(host: Runtime) -> None:
    await host.apply(w.counting(), "counting")
    await (await host.invoke("counting", {"n": 1}, invocation="a")).result()
    with pytest.raises(DataflowerError) as caught:
        await host.invoke("counting", {"n": 1}, invocation="a")
    assert caught.value.code is Code.ALREADY_EXISTS


async def test_applying_twice_changes_nothing_and_a_lost_race_is_told(host: Runtime) -> None:
    first = await host.apply(w.chain(1), "one")
    assert (await host.apply(w.chain(1), "one")).version == first.version == 1
    assert (await host.apply(w.chain(2), "two", expected_version=1)).version == 2
    with pytest.raises(DataflowerError) as caught:
        await host.apply(w.chain(3), "three", expected_version=1)
    assert caught.value.code is Code.ABORTED
    await host.delete("chain")
    assert host.workflows() == ()
    assert (await host.apply(w.chain(1), "one")).version == 3


async def test_a_submission_is_recorded_and_idempotent(host: Runtime) -> None:
    await host.apply(w.map_reduce(), "map_reduce")
    first = await host.submit("map_reduce", {"n": 5}, invocation="job")
    again = await host.submit("map_reduce", {"n": 5}, invocation="job")
    assert again.accepted_at == first.accepted_at
    with pytest.raises(DataflowerError) as caught:
        await host.submit("map_reduce", {"n": 6}, invocation="job")
    assert caught.value.code is Code.ALREADY_EXISTS
    states = [record async for record in host.watch("job")]
    assert states[-1].state is State.SUCCEEDED
    assert states[-1].outputs == {"total": 20}
    assert states[-1].trace is not None
    assert host.recent()[0].id == "job"


async def test_what_a_function_prints_is_in_its_log(tmp_path: Path) -> None:
    async with Runtime(config(log_dir=tmp_path)) as host:
        await call(host, w.single("say"), x="hello from inside")
        assert tail(tmp_path, "say", "only") == ["hello from inside"]


async def test_shutdown_lets_running_calls_finish_and_takes_no_new_ones() -> None:
    async with Runtime(config()) as host:
        await host.apply(w.single("sleep"), "sleep")
        await (await host.invoke("sleep", {"x": 0.0})).result()
        invocation = await host.invoke("sleep", {"x": 0.3})
        reader = asyncio.ensure_future(invocation.result())
        closing = asyncio.ensure_future(host.close())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await host.invoke("sleep", {"x": 0.0})
        await closing
        assert await reader == {"y": 0.3}


async def test_shutdown_cuts_off_what_does_not_finish() -> None:
    async with Runtime(config(drain_timeout_s=0.1)) as host:
        await host.apply(w.single("sleep"), "sleep")
        reader = asyncio.ensure_future((await host.invoke("sleep", {"x": 600.0})).result())
        await host.close()
        with pytest.raises(InvocationFailed, match="the server stops"):
            await reader


async def test_nothing_is_left_of_processes_that_functions_started() -> None:
    async with Runtime(config(isolation=DefaultIsolation.PROCESS)) as host:
        child = (await call(host, w.single("leave_child"), x=1))["y"]
        assert os.path.exists(f"/proc/{child}")
    assert not os.path.exists(f"/proc/{child}")


async def test_finished_and_applied_survive_a_restart(tmp_path: Path) -> None:
    async with Runtime(config(state_dir=tmp_path), load=w.load) as host:
        await host.apply(w.map_reduce(), "map_reduce")
        await (await host.invoke("map_reduce", {"n": 3}, invocation="sync")).result()
        await host.submit("map_reduce", {"n": 4}, invocation="async")
        async for _ in host.watch("async"):
            pass
    async with Runtime(config(state_dir=tmp_path), load=w.load) as host:
        assert [status.name for status in host.workflows()] == ["map_reduce"]
        assert (await host.get("sync")).outputs == {"total": 6}
        assert (await host.get("async")).outputs == {"total": 12}
        assert [record.id for record in host.recent()] == ["async", "sync"]
        assert await call(host, w.map_reduce(), n=2) == {"total": 2}


async def test_an_orderly_stop_hands_submissions_to_the_next_start(tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    settings = config(state_dir=tmp_path / "state", drain_timeout_s=0.0)
    for _ in range(4):  # more often than crashes would be forgiven
        async with Runtime(settings, load=w.load) as host:
            if not host.workflows():
                await host.apply(w.single("wait_for_file"), "wait_for_file")
                await host.submit("wait_for_file", {"x": str(answer)}, invocation="job")
            assert (await host.get("job")).state is State.RUNNING
    answer.write_text("42")
    async with Runtime(settings, load=w.load) as host:
        records = [record async for record in host.watch("job")]
        assert records[-1].outputs == {"y": "42"}


# --- large inputs -------------------------------------------------------------------------------------------------

ECHO = w.chain(1)


async def test_a_call_whose_workflow_is_applied_anew_while_its_input_is_copied_goes_to_the_new_version(
    host: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.apply(ECHO, "first")
    began, opened = threading.Event(), threading.Event()

    def hold(slot: Slot, array: Any) -> None:
        began.set()
        opened.wait()
        copy_into(slot, array)

    monkeypatch.setattr(intake, "copy_into", hold)
    array = np.arange(intake.COPIED_BYTES, dtype=np.uint8)
    calling = asyncio.create_task(host.invoke(ECHO.name, {"x": array}))
    while not began.is_set():
        await asyncio.sleep(0)
    await host.apply(ECHO, "second")
    opened.set()
    invocation = await calling
    np.testing.assert_array_equal((await invocation.result())["y"], array)
    assert (await host.get(invocation.id)).version == 2


async def test_two_calls_under_one_id_are_one_too_many_though_the_first_is_still_being_copied(host: Runtime) -> None:
    await host.apply(ECHO, "echo")
    array = np.arange(intake.COPIED_BYTES, dtype=np.uint8)
    both = [host.invoke(ECHO.name, {"x": array}, invocation="one") for _ in range(2)]
    first, second = await asyncio.gather(*both, return_exceptions=True)
    good, refused = (first, second) if isinstance(second, DataflowerError) else (second, first)
    assert isinstance(refused, DataflowerError)
    assert refused.code is Code.ALREADY_EXISTS
    assert not isinstance(good, BaseException)
    assert (await good.result())["y"].nbytes == array.nbytes
