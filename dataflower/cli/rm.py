"""`dataflower rm`."""

from __future__ import annotations

from typing import Annotated

import typer

from dataflower.cli.options import Server
from dataflower.cli.terminal import terminal


def rm(
    workflows: Annotated[list[str], typer.Argument(metavar="WORKFLOW...", help="Workflows.", show_default=False)],
    server: Server = None,
) -> None:
    """Remove workflows from a server, at once. Invocations that run go on to their end (`cancel` stops them).

    Example: dataflower rm wordcount
    """
    from dataflower.cli.connect import connect

    with connect(server) as client:
        for workflow in workflows:
            running = client.delete(workflow)
            terminal().note(f"removed {workflow}")
            if running:
                what = "invocation still runs to its" if running == 1 else "invocations still run to their"
                terminal().note(f"{running} {what} end")
