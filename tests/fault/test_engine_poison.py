"""Functions that crash, hang, or hand out nonsense: a typed error for their caller, nothing for anybody else."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from engine_rig import AGAIN, PATIENCE_S, Rig, count, one_stage, opened

from dataflower.errors import Code, Failure, InvocationFailed

pytestmark = [pytest.mark.fault, pytest.mark.usefixtures("grpc_runtime")]


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with opened() as rig:
        yield rig


async def failure_of(rig: Rig, workflow: str, **inputs: object) -> Failure:
    with pytest.raises(InvocationFailed) as caught:
        await rig.client.invoke(workflow, inputs, deadline_s=PATIENCE_S)
    return caught.value.failure


CRASHES = {
    "abort": "SIGABRT",
    "segfault": "SIGSEGV",
    "exit_now": "exited with status 4",
    "exit_aside": "exited with status 5",
    "sigterm": "SIGTERM",
    "fork_and_die": "SIGKILL",
    "close_all": "",
}
RAISES = {
    "sys_exit": ("SystemExit", "enough"),
    "recursion": ("RecursionError", "maximum recursion depth"),
    "mute": ("_Mute", "can't be shown"),
    "long": ("ValueError", "xxx"),
}


@pytest.mark.parametrize("how", CRASHES)
async def test_a_crash_of_the_process_is_typed_and_nobody_elses_trouble(rig: Rig, tmp_path: Path, how: str) -> None:
    here, there = str(tmp_path / "here"), str(tmp_path / "there")
    await rig.client.apply(one_stage("poison", "poison", "how"))
    await rig.client.apply(one_stage("meet", "rendezvous", "here", "there"))
    neighbour = asyncio.ensure_future(rig.client.invoke("meet", here=here, there=there))
    await rig.until(lambda: os.path.exists(here))
    failure = await failure_of(rig, "poison", how=how)
    assert (failure.code, failure.kind) == (Code.INTERNAL, "ContainerCrashed")
    assert (failure.stage, failure.attempt) == ("only", 1)
    assert CRASHES[how] in failure.message
    Path(there).touch()
    assert await neighbour == {"out": "met"}
    assert await rig.client.invoke("poison", how="none") == {"out": "well"}


@pytest.mark.parametrize("how", RAISES)
async def test_what_only_raises_leaves_its_container_in_service(rig: Rig, how: str) -> None:
    await rig.client.apply(one_stage("poison", "poison", "how"))
    await rig.client.apply(one_stage("pid", "pid", "x"))
    await rig.client.invoke("poison", how="none")
    before = await rig.pids("poison", "only")
    failure = await failure_of(rig, "poison", how=how)
    kind, message = RAISES[how]
    assert (failure.code, failure.kind, failure.stage, failure.attempt) == (Code.INTERNAL, kind, "only", 1)
    assert message in failure.message
    assert len(failure.message) < 5000
    assert await rig.client.invoke("poison", how="none") == {"out": "well"}
    assert await rig.pids("poison", "only") == before


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("unserialisable", "object"),
        ("unserialisable_item", "set"),
        ("wrong_dtype", "FP32|float32"),
        ("wrong_shape", r"\[3, 3\]"),
        ("wrong_type", "string"),
    ],
)
async def test_an_output_that_does_not_fit_is_the_functions_error(rig: Rig, function: str, message: str) -> None:
    await rig.client.apply(one_stage("bad", function, "x"))
    with pytest.raises(InvocationFailed, match=message) as caught:
        await rig.client.invoke("bad", x=1)
    failure = caught.value.failure
    assert (failure.kind, failure.stage, failure.attempt) == ("TypeMismatch", "only", 1)
    assert failure.code is Code.INTERNAL


@pytest.mark.parametrize("how", ["scribble", "scribble_nothing"])
async def test_nonsense_on_its_sockets_is_the_end_of_a_container(rig: Rig, how: str) -> None:
    await rig.client.apply(one_stage("poison", "poison", "how"))
    failure = await failure_of(rig, "poison", how=how)
    assert (failure.code, failure.kind, failure.stage) == (Code.INTERNAL, "ContainerCrashed", "only")


async def test_a_setup_that_never_ends_costs_its_callers_their_deadline_only(rig: Rig) -> None:
    await rig.client.apply(one_stage("endless", "EndlessSetup", "x"))
    for _ in range(2):
        with pytest.raises(InvocationFailed) as caught:
            await rig.client.invoke("endless", x=1, deadline_s=0.5)
        assert caught.value.code is Code.DEADLINE_EXCEEDED
    (pid,) = await rig.pids("endless", "only")
    await rig.client.delete("endless")
    await rig.until(lambda: pid not in rig.host.container_pids().values())


async def test_items_before_the_crash_arrive_and_then_the_error(rig: Rig) -> None:
    await rig.client.apply(one_stage("dies", "dies_in_stream", "x"))
    seen = []

    async def read() -> None:
        async for item in rig.client.stream("dies", x=5):
            seen.append(item.value)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(InvocationFailed, match="SIGABRT"):
        await read()
    assert seen == list(range(5))


async def test_tasks_in_the_same_process_are_lost_with_it_and_tried_again(rig: Rig, tmp_path: Path) -> None:
    stage = f"scaling: {{max_replicas: 1, max_ongoing_requests: 4}}\n    {AGAIN}"
    await rig.client.apply(one_stage("shared", "crash_once_or_meet", "here", "there", "crash", stage=stage))
    paths = [str(tmp_path / name) for name in ("a", "b", "c")]
    calls = [
        asyncio.ensure_future(rig.client.invoke("shared", here=path, there=str(tmp_path / "go"), crash=""))
        for path in paths
    ]
    await rig.until(lambda: all(os.path.exists(path) for path in paths))
    pids = await rig.pids("shared", "only")
    crash = await rig.client.invoke("shared", here="", there="", crash=str(tmp_path / "crashed"))
    assert crash == {"out": "survived"}
    assert await rig.pids("shared", "only") != pids
    (tmp_path / "go").touch()
    assert await asyncio.gather(*calls) == [{"out": "met"}] * 3


async def test_a_crash_costs_those_that_wait_in_the_same_container_nothing(rig: Rig) -> None:
    """They were given to it ahead, have not begun, and so need no retry."""
    await rig.client.apply(one_stage("poison", "poison", "how", stage="scaling: {max_replicas: 1}"))
    for _ in range(3):
        await rig.client.invoke("poison", how="none")
    ways = ["none"] * 8 + ["abort"] + ["none"] * 16 + ["exit_now"] + ["none"] * 16
    calls = [rig.client.invoke("poison", how=how, deadline_s=PATIENCE_S) for how in ways]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    for how, end in zip(ways, ends, strict=True):
        if how == "none":
            assert end == {"out": "well"}
        else:
            assert isinstance(end, InvocationFailed)
            assert (end.failure.kind, end.failure.attempt) == ("ContainerCrashed", 1)


# --- that never get ready ---------------------------------------------------------------------------------------


async def test_a_setup_that_raises(rig: Rig) -> None:
    await rig.client.apply(one_stage("raising", "RaisingSetup", "x"))
    failure = await failure_of(rig, "raising", x=1)
    assert (failure.code, failure.kind, failure.stage, failure.attempt) == (Code.INTERNAL, "OSError", "only", 1)
    assert "the weights are not there" in failure.message
    assert "fault_functions.py" in failure.traceback


async def test_a_setup_that_kills_its_process_is_tried_three_times(rig: Rig, tmp_path: Path) -> None:
    log = tmp_path / "starts"
    await rig.client.apply(one_stage("dying", "DyingSetup", "x", stage=f"params: {{path: {log}}}"))
    failure = await failure_of(rig, "dying", x=1)
    assert (failure.code, failure.kind, failure.stage, failure.attempt) == (
        Code.INTERNAL,
        "ContainerCrashed",
        "only",
        1,
    )
    assert "before it was ready" in failure.message
    assert count(log) == 3


async def test_two_deaths_at_the_start_are_forgiven(rig: Rig, tmp_path: Path) -> None:
    stage = f"params: {{path: {tmp_path / 'starts'}, lives: 2}}\n    scaling: {{max_replicas: 1}}"
    await rig.client.apply(one_stage("dying", "DyingSetup", "x", stage=stage))
    assert await rig.client.invoke("dying", x="in the end") == {"out": "in the end"}
    assert count(tmp_path / "starts") == 3


async def test_a_module_that_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text("def f(x): return x\nimport no_such_library\n")
    async with opened(code_path=(str(tmp_path), str(Path(__file__).parent.parent))) as rig:
        body = one_stage("half", "f", "x", stage="outputs: {out: any}").replace("fault_functions", "half")
        await rig.client.apply(body)
        failure = await failure_of(rig, "half", x=1)
        assert (failure.code, failure.kind) == (Code.FAILED_PRECONDITION, "ModuleNotFoundError")
        assert "no_such_library" in failure.message


# --- that never end ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["hang", "hang_with_lock"])
async def test_a_hang_in_c_is_killed_after_the_grace(rig: Rig, function: str) -> None:
    await rig.client.apply(one_stage("hang", function, "seconds", stage="outputs: {out: any}"))
    assert await rig.client.invoke("hang", seconds=0.0) == {"out": 0.0}
    (pid,) = await rig.pids("hang", "only")
    with pytest.raises(InvocationFailed) as caught:
        await rig.client.invoke("hang", seconds=600.0, deadline_s=1.0)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    await rig.until(lambda: pid not in rig.host.container_pids().values())
    assert await rig.client.invoke("hang", seconds=0.0) == {"out": 0.0}


async def test_a_hang_is_a_timeout_of_its_stage_and_can_be_tried_again(rig: Rig) -> None:
    stage = "outputs: {out: any}\n    timeout_s: 0.2\n    retry: {errors: [Timeout], max_attempts: 2, interval_s: 0}"
    await rig.client.apply(one_stage("hang", "hang", "seconds", stage=stage))
    failure = await failure_of(rig, "hang", seconds=600.0)
    assert (failure.code, failure.kind, failure.attempt) == (Code.DEADLINE_EXCEEDED, "Timeout", 2)
