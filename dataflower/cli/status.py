"""`dataflower status`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dataflower.cli.exits import ExitCode
from dataflower.cli.options import Output, Server
from dataflower.cli.terminal import Format, emit, show, terminal

if TYPE_CHECKING:
    from dataflower.core.verdict import Verdict
    from dataflower.gateway.client import Client
    from dataflower.gateway.messages import WorkflowInfo
    from dataflower.host.api import InvocationRecord


def status(
    name: Annotated[
        str | None, typer.Argument(help="Workflow, or id of an invocation (or its beginning).", show_default=False)
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the invocation is over.")] = False,
    server: Server = None,
    output: Output = Format.TABLE,
) -> None:
    """Show the server, one workflow, or one invocation with its outputs.

    Ends with 1 if the invocation has failed or was cancelled.

    Example: dataflower status 7f3a --wait -o json
    """
    from dataflower.cli.connect import connect
    from dataflower.cli.records import workflow_of
    from dataflower.host.api import InvocationRecord, State

    with connect(server) as client:
        if name is None:
            _server(client, output)
            return
        found = _find(client, name, wait=wait)
        if isinstance(found, InvocationRecord):
            verdicts, info = _verdicts(client, found), workflow_of(client, found)

    if not isinstance(found, InvocationRecord):
        _workflow(found, output)
        return
    _invocation(found, verdicts, info, output)
    if found.state in (State.FAILED, State.CANCELLED):
        raise typer.Exit(ExitCode.FAILED)


def _find(client: Client, name: str, *, wait: bool) -> WorkflowInfo | InvocationRecord:
    from dataflower.cli.ids import by_id
    from dataflower.errors import NotFound

    try:
        return client.workflow(name)
    except NotFound:
        pass
    try:
        record = by_id(client, name, client.get)
    except NotFound as error:
        if "begin with" in error.message:
            raise
        raise NotFound(f"no workflow and no invocation {name!r} (dataflower ls shows what there is)") from None
    if wait:
        *_, record = client.watch(record.id)
    return record


def _verdicts(client: Client, record: InvocationRecord) -> tuple[Verdict, ...]:
    from dataflower.cli.records import promised
    from dataflower.core.verdict import judge_trace
    from dataflower.errors import DataflowerError

    slo = promised(client, record)
    if slo is None:
        return ()
    try:
        return judge_trace(slo, client.trace(record.id))
    except DataflowerError:  # no trace was kept
        return ()


def _server(client: Client, output: Format) -> None:
    from dataflower.cli.devices import device_data, device_table, device_text
    from dataflower.cli.hosts import peer_data, peer_table
    from dataflower.cli.records import (
        ago,
        iso,
        preloaded_data,
        preloaded_table,
        weights_data,
        weights_text,
        workflow_data,
        workflow_table,
    )

    info = client.status()
    data = {
        "version": info.version,
        "started_at": iso(info.started_at),
        "max_message_bytes": info.max_message_bytes,
        "workflows": [workflow_data(w) for w in info.workflows],
        "peers": [peer_data(peer) for peer in info.peers],
        "weights": None if info.weights is None else weights_data(info.weights),
        "preloaded": [preloaded_data(artifact) for artifact in info.preloaded],
        "devices": [device_data(device) for device in info.devices],
    }
    if output is Format.TABLE:
        terminal().note(f"dataflower {info.version}, started {ago(info.started_at)}")
        if info.weights is not None:
            terminal().note(weights_text(info.weights))
        for device in info.devices:
            terminal().note(device_text(device))
    emit(data, output, lambda: workflow_table(info.workflows))
    if output is Format.TABLE and info.peers:
        show(peer_table(info.peers))
    if output is Format.TABLE and info.devices and not terminal().quiet:
        show(device_table(info.devices))
    if output is Format.TABLE and info.preloaded and not terminal().quiet:
        show(preloaded_table(info.preloaded))


def _workflow(info: WorkflowInfo, output: Format) -> None:
    from dataflower.cli.records import ago, ports, slow_lines, stage_table, workflow_data

    if output is Format.TABLE:
        terminal().note(
            f"{info.name}@{info.version}, applied {ago(info.applied_at)}, {info.running} running\n"
            f"inputs:  {ports(info.inputs)}\noutputs: {ports(info.outputs)}"
        )
        if info.replanning is not None:
            from dataflower.cli.replan import replan_lines

            for line in replan_lines(info.replanning):
                terminal().note(line)
        for line in slow_lines(info.stages):
            terminal().note(line)
    emit(workflow_data(info), output, lambda: stage_table(info.stages))


def _invocation(
    record: InvocationRecord, verdicts: tuple[Verdict, ...], info: WorkflowInfo | None, output: Format
) -> None:
    from dataflower.cli.outcome import slo_data, slo_lines
    from dataflower.cli.records import outputs_table, record_data, record_table
    from dataflower.cli.terminal import describe
    from dataflower.errors import InvocationFailed

    data = {**record_data(record), **({"slo": slo_data(verdicts)} if verdicts else {})}
    emit(data, output, lambda: record_table([record]))
    if output is Format.TABLE:
        if record.outputs:
            show(outputs_table(record, () if info is None else info.outputs))
        if record.failure is not None:
            terminal().error(describe(InvocationFailed(record.failure)))
        if verdicts and not terminal().quiet:
            show(slo_lines(verdicts), err=True)
