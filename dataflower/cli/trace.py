"""`dataflower trace`."""

from __future__ import annotations

from typing import Annotated

import typer

from dataflower.cli.options import Output, Server
from dataflower.cli.terminal import Format, emit, show, terminal


def trace(
    invocation: Annotated[
        str, typer.Argument(metavar="ID", help="Invocation, by id or its beginning.", show_default=False)
    ],
    all_: Annotated[bool, typer.Option("--all", "-a", help="Draw a line for each task, however many.")] = False,
    server: Server = None,
    output: Output = Format.TABLE,
) -> None:
    """Draw the timeline of an invocation that is over.

    A line for each task: when it was queued, had fetched its inputs, started, gave its first output, ended, and had
    sent everything. A stage with many tasks is one line, whose height says how many ran at once.

    Example: dataflower trace 7f3a --all
    """
    from dataflower.cli.connect import connect
    from dataflower.cli.ids import by_id
    from dataflower.cli.outcome import slo_data, slo_lines
    from dataflower.cli.records import promised
    from dataflower.cli.waterfall import FOLD, Waterfall, as_data
    from dataflower.core.verdict import judge_trace

    with connect(server) as client:
        found = by_id(client, invocation, client.trace)
        record = client.get(found.invocation)
        verdicts = judge_trace(promised(client, record), found)
    data = {**as_data(found), **({"slo": slo_data(verdicts)} if verdicts else {})}
    emit(data, output, lambda: Waterfall(found, len(found.tasks) if all_ else FOLD))
    if verdicts and not terminal().quiet:
        show(slo_lines(verdicts), err=True)
