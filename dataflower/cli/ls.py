"""`dataflower ls`."""

from __future__ import annotations

from typing import Annotated

import typer

from dataflower.cli.options import Output, Server
from dataflower.cli.terminal import Format, emit, terminal


def ls(
    workflow: Annotated[
        str | None, typer.Argument(help="List the invocations of this workflow.", show_default=False)
    ] = None,
    invocations: Annotated[
        bool, typer.Option("--invocations", "-i", help="List invocations, of all workflows if none is named.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many invocations.")] = 20,
    server: Server = None,
    output: Output = Format.TABLE,
) -> None:
    """List the workflows of a server, or the newest invocations.

    Example: dataflower ls wordcount -n 5

    With --quiet, names or ids alone, a line each.
    """
    from dataflower.cli.connect import connect
    from dataflower.cli.records import record_data, record_table, workflow_data, workflow_table

    with connect(server) as client:
        if workflow is not None or invocations:
            if workflow is not None:
                client.workflow(workflow)
            records = client.invocations(workflow, limit)
            if not _names_only([r.id for r in records], output):
                emit([record_data(r) for r in records], output, lambda: record_table(records))
        else:
            infos = client.workflows()
            if not _names_only([i.name for i in infos], output):
                emit([workflow_data(i) for i in infos], output, lambda: workflow_table(infos))


def _names_only(names: list[str], output: Format) -> bool:
    """For `--quiet`: a line each and nothing else, so that a shell can go through them."""
    if output is not Format.TABLE or not terminal().quiet:
        return False
    print("".join(f"{name}\n" for name in names), end="", flush=True)
    return True
