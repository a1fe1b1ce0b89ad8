"""`dataflower cancel`."""

from __future__ import annotations

from typing import Annotated

import typer

from dataflower.cli.options import Output, Server
from dataflower.cli.terminal import Format, emit


def cancel(
    invocations: Annotated[
        list[str], typer.Argument(metavar="ID...", help="Invocations, by id or its beginning.", show_default=False)
    ],
    server: Server = None,
    output: Output = Format.TABLE,
) -> None:
    """Stop invocations, whoever started them; nothing changes for those that are over.

    Example: dataflower cancel 7f3a
    """
    from dataflower.cli.connect import connect
    from dataflower.cli.ids import by_id
    from dataflower.cli.records import record_data, record_table

    with connect(server) as client:
        records = [by_id(client, invocation, client.cancel) for invocation in invocations]
    emit([record_data(r) for r in records], output, lambda: record_table(records))
