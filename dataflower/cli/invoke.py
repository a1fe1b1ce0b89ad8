"""`dataflower invoke`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dataflower.cli.exits import ExitCode
from dataflower.cli.options import Deadline, Inputs, Output, Server
from dataflower.cli.terminal import Format, emit, show, terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dataflower.cli.outcome import Outcome
    from dataflower.cli.screen import Screen
    from dataflower.gateway.client import Client
    from dataflower.spec.function import Port
    from dataflower.spec.workflow import Slo


def invoke(
    workflow: Annotated[str, typer.Argument(help="Name of the workflow.", show_default=False)],
    inputs: Inputs = None,
    *,
    stream: Annotated[
        bool | None,
        typer.Option("--stream/--no-stream", help="Show items of stream outputs as they come.", show_default="if any"),
    ] = None,
    deadline: Deadline = None,
    async_: Annotated[bool, typer.Option("--async", help="Submit only: print the id and return.")] = False,
    request_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Id of the invocation; the same id again runs it once.")
    ] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Draw the timeline afterwards.")] = False,
    check_slo: Annotated[bool, typer.Option("--check-slo", help="End with 3 if the SLO was missed.")] = False,
    server: Server = None,
    output: Output = Format.TABLE,
) -> None:
    """Call a workflow on a server.

    Example: dataflower invoke wordcount text=@book.txt --deadline 30s
    """
    import dataclasses

    from dataflower.cli.connect import connect
    from dataflower.cli.durations import limit
    from dataflower.cli.inputs import parse_inputs
    from dataflower.cli.outcome import want_slo
    from dataflower.cli.records import record_data

    deadline_s = limit("--deadline", deadline)
    with connect(server) as client:
        info = client.workflow(workflow)
        if check_slo:
            want_slo(workflow, info.slo)
        has_files = any("=@" in pair for pair in inputs or ())
        most = client.status().max_message_bytes if has_files else None
        given = parse_inputs(inputs or [], info.inputs, max_bytes=most)
        if async_:
            record = client.submit(workflow, given, deadline_s=deadline_s, request_id=request_id)
            emit(record_data(record), output, lambda: record.id)
            return
        as_text = output is Format.TABLE
        streams = any(port.stream for port in info.outputs)
        streaming = stream if stream is not None else streams and (as_text or check_slo)
        slo = info.slo
        if slo is not None and streams and not streaming:  # nobody sees when the items come
            slo = dataclasses.replace(slo, ttft_ms=None, itl_ms=None, tpot_ms=None)
        outcome = _call(
            client,
            workflow,
            given,
            deadline_s,
            request_id,
            slo=slo,
            outputs=info.outputs,
            streaming=streaming,
            as_text=as_text,
        )
        if trace and outcome.invocation:
            outcome.trace = client.trace(outcome.invocation)
    _report(outcome, output)
    if outcome.failure is not None:
        raise typer.Exit(ExitCode.FAILED)
    if check_slo and not outcome.slo_met:
        raise typer.Exit(ExitCode.SLO_NOT_MET)


def _call(
    client: Client,
    workflow: str,
    inputs: dict[str, Any],
    deadline_s: float | None,
    request_id: str | None,
    *,
    slo: Slo | None,
    outputs: Sequence[Port],
    streaming: bool,
    as_text: bool,
) -> Outcome:
    import uuid

    from dataflower.cli.outcome import Outcome
    from dataflower.cli.records import in_order
    from dataflower.cli.screen import screen
    from dataflower.clock import SystemClock
    from dataflower.core.verdict import judge
    from dataflower.errors import InvocationFailed

    clock = SystemClock()
    begun = clock.monotonic()
    outcome = Outcome(request_id or uuid.uuid4().hex, workflow)
    times: dict[str, list[float]] = {}
    try:
        with screen(terminal(), items=as_text) as shown:
            if streaming:
                _stream(client, inputs, deadline_s, outcome, shown, times=times, as_text=as_text)
            else:
                done = client.invoke(workflow, inputs, deadline_s=deadline_s, request_id=outcome.invocation)
                outcome.outputs = {
                    name: _printable(value, as_text=as_text)
                    for name, value in in_order(done, outputs, join=as_text).items()
                }
    except InvocationFailed as error:
        outcome.failure = error.failure
    ended = clock.monotonic()
    outcome.outputs = in_order(outcome.outputs, outputs, join=False)
    outcome.seconds = ended - begun
    if outcome.failure is None:
        outcome.verdicts = judge(slo, begun, ended, times)
    return outcome


def _stream(
    client: Client,
    inputs: dict[str, Any],
    deadline_s: float | None,
    outcome: Outcome,
    shown: Screen,
    *,
    times: dict[str, list[float]],
    as_text: bool,
) -> None:
    from dataflower.clock import SystemClock
    from dataflower.host.api import OutputItem

    clock = SystemClock()
    with client.stream(outcome.workflow, inputs, deadline_s=deadline_s, request_id=outcome.invocation) as items:
        for port, index, value in items:
            if index < 0:
                outcome.outputs[port] = _printable(value, as_text=as_text)
                continue
            times.setdefault(port, []).append(clock.monotonic())
            if as_text:
                shown.item(OutputItem(port, index, value))
                outcome.streamed.add(port)
            else:
                outcome.outputs.setdefault(port, []).append(_printable(value, as_text=False))


def _printable(value: Any, *, as_text: bool) -> Any:
    from dataflower.cli.values import plain, text

    return text(value) if as_text else plain(value)


def _report(outcome: Outcome, output: Format) -> None:
    from dataflower.cli.outcome import results, slo_lines
    from dataflower.cli.terminal import describe
    from dataflower.cli.waterfall import Waterfall
    from dataflower.errors import InvocationFailed

    if output is not Format.TABLE:
        emit(outcome.as_data(trace=True), output, lambda: "")
    elif (table := results(outcome.outputs, outcome.streamed)) is not None:
        show(table)
    if output is Format.TABLE and outcome.trace is not None:
        show(Waterfall(outcome.trace), err=True)
    if outcome.failure is not None:
        terminal().error(describe(InvocationFailed(outcome.failure)))
    elif output is Format.TABLE:
        terminal().note(f"{outcome.invocation}: {outcome.seconds * 1000:.1f} ms")
        if outcome.verdicts and not terminal().quiet:
            show(slo_lines(outcome.verdicts), err=True)
