"""Nonsense through the front door of a real host: a clear error with the right code, and it serves on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from engine_rig import CODE, HEAD, PATIENCE_S, Rig, one_stage, opened, workflow
from typer.testing import CliRunner

from dataflower.cli.group import app
from dataflower.errors import (
    Code,
    DataflowerError,
    InvalidArgument,
    InvocationFailed,
    NotFound,
    ResourceExhausted,
    WorkflowInvalid,
)
from dataflower.gateway._generated import workflow_pb2 as pb
from dataflower.gateway._generated import workflow_pb2_grpc
from dataflower.gateway.client import Client

pytestmark = [pytest.mark.usefixtures("grpc_runtime"), pytest.mark.asyncio(loop_scope="module")]

TYPED = workflow(
    "typed",
    """
inputs:
  image: {dtype: UINT8, shape: [H, W, 3]}
  mask: {dtype: BOOL, shape: [H, W]}
  name: string
  count: {type: int, default: 1}
  extra: {type: json, optional: true}
stages:
  only: {function: "fault_functions:echo", inputs: {x: inputs.image}, scaling: {max_replicas: 1}}
  also: {function: "fault_functions:echo", inputs: {x: inputs.name}, scaling: {max_replicas: 1}}
outputs: {image: only.out, name: also.out}
""",
)
ITEMS = workflow(
    "items",
    """
inputs: {items: {dtype: FP32, shape: [2], stream: true}}
stages:
  relay: {function: "fault_functions:relayed", inputs: {items: inputs.items}, scaling: {max_replicas: 1}}
outputs: {out: relay.out}
""",
)
IMAGE, MASK = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.bool_)
GOOD = {"image": IMAGE, "mask": MASK, "name": "cat"}


@contextlib.asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[Rig]:
    """A rig with workflows to be called wrongly; what is refused must not have become an invocation."""
    async with opened(**settings) as rig:
        await rig.client.apply(TYPED)
        await rig.client.apply(ITEMS)
        yield rig
        assert (await rig.client.invoke("typed", GOOD))["name"] == "cat"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(grpc_runtime: None) -> AsyncIterator[Rig]:
    """One host for all, its containers started and no more to come: nonsense must leave it as good as new."""
    async with serving() as rig:
        await rig.client.invoke("typed", GOOD)
        await rig.client.invoke("items", items=[np.ones(2, np.float32)])
        await rig.client.invoke("echo", x=1)
        await rig.settled()
        yield rig


@pytest_asyncio.fixture(loop_scope="module")
async def rig(shared: Rig) -> AsyncIterator[Rig]:
    yield shared
    await shared.settled()
    assert [each.name for each in await shared.client.workflows()] == ["echo", "items", "typed"]


async def refusal(call: Awaitable[Any], kind: type[DataflowerError] = DataflowerError) -> DataflowerError:
    with pytest.raises(kind) as caught:
        await call
    return caught.value


# --- workflows ----------------------------------------------------------------------------------------------------

FOR_ANOTHER = """kind: Plan
workflow: other
rate_per_s: 1
slo_ms: 400
percentile: 100
arrivals: paced
billing: integer
cost_per_hour: 1
cost_per_1000: 0.3
worst_ms: 200
stages:
  only:
    budget_ms: 400
    rate_per_s: 1
    groups:
      - {device: cpu, batch: 1, machines: 1, replicas: 1, rate_per_s: 1, duration_ms: 100, timeout_ms: 0, worst_ms: 200}
"""


async def test_what_only_the_server_finds_wrong_with_a_plan_names_its_file(rig: Rig, tmp_path: Path) -> None:
    file, plan = tmp_path / "typed.yaml", tmp_path / "my.plan.yaml"
    file.write_text(TYPED)
    plan.write_text(FOR_ANOTHER)
    wrong = "1:1: the plan is for workflow 'other', not 'typed'"
    assert (await refusal(rig.client.apply(TYPED, plan=plan))).message == f"{plan}:{wrong}"
    assert (await refusal(rig.client.apply(TYPED, plan=FOR_ANOTHER))).message == f"<plan>:{wrong}"
    command = ["apply", "--server", rig.address, str(file), "--plan", str(plan)]
    done = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert done.exit_code == 1
    assert f"{plan}:{wrong}" in done.stderr


ONLY = "stages:\n  only: {function: 'fault_functions:echo', inputs: {x: inputs.x}}\n"
BROKEN = {
    "empty": ("\n", 1, "empty"),
    "prose": ("Dear server,\nplease run my model.\n", 1, ""),
    "binary": ("\x00\x01\n\x02", 1, "YAML"),
    "unclosed": (HEAD % "w" + "stages: [\n", 5, "YAML"),
    "a tab": (HEAD % "w" + "stages:\n\tonly: {}\n", 5, "YAML"),
    "another version": ("apiVersion: dataflower/v9\nkind: Workflow\nmetadata: {name: w}\n", 1, "dataflower/v1"),
    "a bad name": (HEAD % "../../etc" + "inputs: {x: any}\n" + ONLY, 3, "name"),
    "an unknown key": (HEAD % "w" + "inputs: {x: any}\n" + ONLY.replace("function", "functoin"), 6, "'function'"),
    "an unknown function": (HEAD % "w" + "inputs: {x: any}\n" + ONLY.replace("echo", "ecko"), 6, "'echo'"),
    "an unknown module": (HEAD % "w" + "inputs: {x: any}\n" + ONLY.replace("fault_f", "no_such_f"), 6, "no module"),
    "an unknown edge": (HEAD % "w" + ONLY, 5, "input 'x'"),
    "no stages": (HEAD % "w" + "inputs: {x: any}\n", 1, "stages"),
    "a bomb": (
        # Nine to the power of nine, if it were written out.
        HEAD % "w"
        + "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghi")),
        1,
        "unknown key",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_a_broken_workflow_is_refused_with_its_places(rig: Rig, what: str) -> None:
    text, line, said = BROKEN[what]
    error = await refusal(rig.client.apply(text), WorkflowInvalid)
    assert isinstance(error, WorkflowInvalid)
    assert error.code is Code.INVALID_ARGUMENT
    assert any(said in str(problem) for problem in error.problems), error
    assert (error.problems[0].file, error.problems[0].line) == ("<workflow>", line), error


async def test_a_broken_new_version_leaves_the_old_one_in_service(rig: Rig) -> None:
    await refusal(rig.client.apply(TYPED.replace("inputs.name", "inputs.nam")), WorkflowInvalid)
    assert (await rig.client.workflow("typed")).version == 1


# --- inputs -------------------------------------------------------------------------------------------------------

BAD_INPUTS: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"image": IMAGE.astype(np.float32)}, r"port 'image' expects UINT8\[H, W, 3\], got FP32\[4, 6, 3\]"),
    "rank": ({"image": IMAGE[0]}, "rank 2 instead of 3"),
    "fixed size": ({"image": np.zeros((4, 6, 4), np.uint8)}, r"got UINT8\[4, 6, 4\]"),
    "named size": ({"mask": MASK[:3]}, r"BOOL\[3, 6\] \(H is 4 in this task\)"),
    "no tensor": ({"image": [[[0]]]}, "port 'image' expects UINT8.*got list"),
    "nothing": ({"image": None}, r"got nothing \(None\)"),
    "not a string": ({"name": 5}, "port 'name' expects string, got int"),
    "a tensor for a string": ({"name": MASK}, r"expects string, got BOOL\[4, 6\]"),
    "not a number": ({"count": "many"}, "port 'count' expects int, got str"),
    "a fraction": ({"count": 1.5}, "port 'count' expects int, got float"),
    "a truth": ({"count": True}, "port 'count' expects int, got bool"),
    "bytes in json": ({"extra": {"deep": [b"x"]}}, r"bytes at \.deep\[0\]"),
    "a misspelt name": ({"nane": "x"}, r"unknown input 'nane'.*did you mean 'name'"),
}


@pytest.mark.parametrize("what", BAD_INPUTS)
async def test_inputs_that_do_not_fit_are_refused_before_anything_runs(rig: Rig, what: str) -> None:
    inputs, message = BAD_INPUTS[what]
    given, accepted = {**GOOD, **inputs}, rig.host.statistics().accepted
    for call in (rig.client.invoke("typed", given), rig.client.submit("typed", given), read(rig, "typed", given)):
        with pytest.raises(InvalidArgument, match=message):
            await call
    assert rig.host.statistics().accepted == accepted


async def read(rig: Rig, name: str, given: dict[str, Any]) -> list[Any]:
    return [item async for item in rig.client.stream(name, given)]


async def test_missing_inputs_are_named_with_their_types(rig: Rig) -> None:
    with pytest.raises(InvalidArgument, match=r"input 'mask' of workflow 'typed' is missing; it takes BOOL\[H, W\]"):
        await rig.client.invoke("typed", image=IMAGE, name="cat")


async def test_a_bad_item_of_a_stream_ends_its_call(rig: Rig) -> None:
    async def items() -> AsyncIterator[Any]:
        yield np.ones(2, np.float32)
        yield np.ones(3, np.float32)

    with pytest.raises(InvalidArgument, match=r"port 'items' expects FP32\[2\], got FP32\[3\]"):
        await rig.client.invoke("items", items=[np.ones(2, np.float32), np.ones(3, np.float32)])
    with pytest.raises(DataflowerError, match=r"port 'items' expects FP32\[2\], got FP32\[3\]") as caught:
        await read(rig, "items", {"items": items()})
    assert caught.value.code is Code.INVALID_ARGUMENT
    await rig.settled()
    assert rig.host.statistics().running == 0


# --- too much -----------------------------------------------------------------------------------------------------


async def test_too_much_is_refused_by_each_limit_in_turn() -> None:
    big = np.zeros(2 << 20, np.uint8)
    async with serving(max_input_bytes=1 << 20) as rig:
        error = await refusal(rig.client.invoke("echo", x=big), ResourceExhausted)
        assert "more than the allowed 1048576" in error.message
        message = await refusal(rig.client.invoke("echo", x=b"x" * (65 << 20)), ResourceExhausted)
        assert f"larger than max_message_bytes, {64 << 20}; send it in parts" in message.message
        assert rig.host.statistics().accepted == 0


async def test_a_full_queue_says_when_to_come_back() -> None:
    stage = "scaling: {max_replicas: 1, max_queued_requests: 1}"
    async with opened() as rig:
        await rig.client.apply(one_stage("narrow", "hang", "seconds", stage="outputs: {out: any}\n    " + stage))
        running = await rig.host.invoke("narrow", {"seconds": 600.0})
        await rig.until(lambda: rig.host.workflow("narrow").stages[0].busy == 1)
        waiting = await rig.host.invoke("narrow", {"seconds": 600.0})
        error = await refusal(rig.client.invoke("narrow", seconds=0.0), ResourceExhausted)
        assert "the queue of stage 'only' is full" in error.message
        assert error.retry_after_s
        waiting.cancel()
        running.cancel()


# --- names --------------------------------------------------------------------------------------------------------

UNKNOWN: dict[str, Callable[[Rig], Awaitable[Any]]] = {
    "invoke": lambda rig: rig.client.invoke("typd", GOOD),
    "stream": lambda rig: read(rig, "typd", GOOD),
    "submit": lambda rig: rig.client.submit("typd", GOOD),
    "workflow": lambda rig: rig.client.workflow("typd"),
    "delete": lambda rig: rig.client.delete("typd"),
}


@pytest.mark.parametrize("call", UNKNOWN)
async def test_an_unknown_workflow_is_not_found_and_the_nearest_is_named(rig: Rig, call: str) -> None:
    error = await refusal(UNKNOWN[call](rig), NotFound)
    assert "no workflow 'typd' (did you mean 'typed'?)" in error.message


async def test_unknown_invocations_are_not_found(rig: Rig) -> None:
    for call in (rig.client.get, rig.client.cancel, rig.client.trace):
        await refusal(call("nobody"), NotFound)
    with pytest.raises(NotFound, match="nobody"):
        _ = [record async for record in rig.client.watch("nobody")]


@pytest.mark.parametrize("ident", ["two words", "x" * 129, "line\nbreak", "ü"])
async def test_ids_that_would_be_trouble_are_refused(rig: Rig, ident: str) -> None:
    for call in (rig.client.invoke, rig.client.submit):
        with pytest.raises(InvalidArgument, match="printable ASCII"):
            await call("typed", GOOD, request_id=ident)


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, 1e-9])
async def test_a_deadline_that_has_passed_is_exceeded(rig: Rig, deadline_s: float) -> None:
    with pytest.raises(InvocationFailed) as caught:
        await rig.client.invoke("typed", GOOD, deadline_s=deadline_s)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    record = await rig.client.submit("typed", GOOD, deadline_s=deadline_s)
    *_, last = [record async for record in rig.client.watch(record.id)]
    assert last.failure is not None
    assert last.failure.code is Code.DEADLINE_EXCEEDED


@pytest.mark.parametrize("deadline_s", ["10", True, [1.0], float("nan"), float("inf"), 1e12])
async def test_a_deadline_that_is_no_time_is_refused_by_name(rig: Rig, deadline_s: Any) -> None:
    with pytest.raises(InvalidArgument, match="deadline_s takes"):
        await rig.client.invoke("typed", GOOD, deadline_s=deadline_s)
    with pytest.raises(InvalidArgument, match="deadline_s takes"):
        rig.client.stream("typed", GOOD, deadline_s=deadline_s)
    with pytest.raises(InvalidArgument, match="deadline_s takes"):
        await rig.client.submit("typed", GOOD, deadline_s=deadline_s)
    with Client(rig.address) as client, pytest.raises(InvalidArgument, match="deadline_s takes"):
        client.invoke("typed", GOOD, deadline_s=deadline_s)


async def test_deadlines_may_be_numbers_of_any_kind_and_far_away(rig: Rig) -> None:
    for deadline_s in (np.float32(30.0), 30, 1e9):
        assert (await rig.client.invoke("typed", GOOD, deadline_s=deadline_s))["name"] == "cat"


# --- functions ----------------------------------------------------------------------------------------------------


async def test_functions_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "broken_syntax.py").write_text("def f(x:\n")
    (tmp_path / "missing_library.py").write_text("import no_such_library\ndef f(x): return x\n")
    (tmp_path / "raises_inside.py").write_text("def f(x): return x\nraise RuntimeError('no licence')\n")
    (tmp_path / "exits_inside.py").write_text("import sys\ndef f(x): return x\nsys.exit(1)\n")
    (tmp_path / "takes_it_back.py").write_text("def f(x): return x\ndel f\n")
    declared = "outputs: {out: any}\n    types: {x: any}"
    expected = {
        "missing_library": (Code.FAILED_PRECONDITION, "ModuleNotFoundError"),
        "raises_inside": (Code.FAILED_PRECONDITION, "RuntimeError"),
        "exits_inside": (Code.FAILED_PRECONDITION, "SystemExit"),
        "takes_it_back": (Code.FAILED_PRECONDITION, "AttributeError"),
    }
    async with opened(code_path=(str(tmp_path), CODE)) as rig:
        for module, (code, kind) in expected.items():
            text = one_stage(module, "f", "x", stage=declared).replace("fault_functions", module)
            await rig.client.apply(text)
            for _ in range(2):  # an error that stays is told each time
                with pytest.raises(InvocationFailed) as caught:
                    await rig.client.invoke(module, x=1, deadline_s=PATIENCE_S)
                failure = caught.value.failure
                assert (failure.code, failure.kind, failure.stage) == (code, kind, "only")
        text = one_stage("syntax", "f", "x").replace("fault_functions", "broken_syntax")
        await refusal(rig.client.apply(text), WorkflowInvalid)


# --- messages -----------------------------------------------------------------------------------------------------

VALUES = {
    "too few bytes": pb.Value(tensor=pb.Tensor(datatype="FP32", shape=[2, 2], data=b"1234")),
    "a negative size": pb.Value(tensor=pb.Tensor(datatype="FP32", shape=[-1, -4], data=b"1234" * 4)),
    "sizes beyond all": pb.Value(tensor=pb.Tensor(datatype="FP32", shape=[2**62, 2**62], data=b"")),
    "an unknown datatype": pb.Value(tensor=pb.Tensor(datatype="FP31", shape=[1], data=b"1234")),
    "no datatype": pb.Value(tensor=pb.Tensor(shape=[1], data=b"1234")),
}


@pytest.mark.parametrize("what", VALUES)
async def test_tensors_that_do_not_hold_together_are_refused(rig: Rig, what: str) -> None:
    async with grpc.aio.insecure_channel(rig.address) as channel:
        stub = workflow_pb2_grpc.WorkflowServiceStub(channel)
        for method, request in ((stub.Invoke, pb.InvokeRequest), (stub.Submit, pb.SubmitRequest)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(request(workflow="echo", inputs={"x": VALUES[what]}))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_bytes_that_are_no_message_and_methods_that_are_none(rig: Rig) -> None:
    async with grpc.aio.insecure_channel(rig.address) as channel:
        for method in ("Invoke", "Submit", "ApplyWorkflow"):
            call = channel.unary_unary(f"/dataflower.v1.WorkflowService/{method}")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"\xff" * 100)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/dataflower.v1.WorkflowService/Explode")(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
